//! What all pages share: the frame, amounts as people write them, and names of networks.

use domain::chain::{Asset, ChainId};
use domain::money::Amount;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::config::Config;

/// A whole page. `refresh` is for browsers without scripts.
pub(super) fn frame(title: &str, refresh: Option<u32>, attributes: Live, main: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                link rel="stylesheet" href="/assets/style.css";
                @if let Some(seconds) = refresh {
                    noscript { meta http-equiv="refresh" content=(seconds); }
                }
                script src="/assets/live.js" defer {}
            }
            body data-live=(attributes.as_str()) { main { (main) } }
        }
    }
}

/// How a page stays true while it is open.
#[derive(Clone, Copy)]
pub(super) enum Live {
    /// It is told of events.
    Events,
    /// It asks again every few seconds.
    Poll,
    /// It does not change.
    Still,
}

impl Live {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Poll => "poll",
            Self::Still => "still",
        }
    }
}

/// The page that asks for a key.
pub(super) fn login(refused: bool) -> Markup {
    let main = html! {
        section.narrow {
            h1 { "Quittance" }
            @if refused { p.bad role="alert" { "That key is not known, or was revoked." } }
            form method="post" action="/session" {
                label { "API key" input type="password" name="key" autocomplete="off" required autofocus; }
                button type="submit" { "Open the dashboard" }
            }
            p.dim { "Make one with " code { "quittance key create --name NAME --scope read" } "." }
        }
    };
    frame("Quittance", None, Live::Still, &main)
}

/// The one page for everything that is not there.
pub(super) fn missing() -> Markup {
    let main = html! { section.narrow { h1 { "Nothing here" } p { "There is no such page." } } };
    frame("Nothing here", None, Live::Still, &main)
}

/// An amount with its asset's decimals and symbol, if they are configured; else in base units.
pub(super) fn amount(config: &Config, chain: ChainId, asset: &Asset, amount: Amount) -> Markup {
    let known =
        config.chains.iter().find(|known| known.id == chain).and_then(|known| known.assets.get(asset));
    html! {
        @match known {
            Some(known) => {
                span.amount title={ (amount) " base units" } { (with_decimals(amount, known.decimals)) " " (known.symbol) }
            }
            None => { span.amount { (amount) } " " span.dim { "base units of " (asset) } }
        }
    }
}

/// Writes a decimal point into an integer. Exact: only digits are moved.
pub(super) fn with_decimals(amount: Amount, decimals: u8) -> String {
    let digits = amount.to_string();
    let decimals = usize::from(decimals);
    let padded = format!("{digits:0>width$}", width = decimals + 1);
    let (whole, part) = padded.split_at(padded.len() - decimals);
    let part = part.trim_end_matches('0');
    if part.is_empty() { whole.to_owned() } else { format!("{whole}.{part}") }
}

/// A network as people call it.
pub(super) fn network(chain: ChainId) -> String {
    let name = match chain.number() {
        1 => "Ethereum",
        10 => "OP Mainnet",
        137 => "Polygon",
        8453 => "Base",
        42161 => "Arbitrum One",
        84532 => "Base Sepolia (test)",
        11_155_111 => "Sepolia (test)",
        11_155_420 => "OP Sepolia (test)",
        _ => return chain.to_string(),
    };
    format!("{name} ({chain})")
}

/// A QR code as one SVG path. Nothing for texts that are too long for one.
pub(super) fn qr(text: &str) -> Option<Markup> {
    use std::fmt::Write as _;
    let code = qrcode::QrCode::new(text).ok()?;
    let width = code.width();
    let mut path = String::new();
    for (index, color) in code.to_colors().into_iter().enumerate() {
        if color == qrcode::Color::Dark {
            let _ = write!(path, "M{} {}h1v1h-1z", index % width + 4, index / width + 4);
        }
    }
    let side = width + 8;
    // Digits and path letters only: there is nothing to escape.
    Some(PreEscaped(format!(
        "<svg class=\"qr\" viewBox=\"0 0 {side} {side}\" role=\"img\" aria-label=\"QR code of the payment link\">\
         <rect width=\"{side}\" height=\"{side}\"/><path d=\"{path}\"/></svg>"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        let shown = |amount: &str, decimals| with_decimals(amount.parse().unwrap(), decimals);
        assert_eq!(shown("2500000", 6), "2.5");
        assert_eq!(shown("1", 18), "0.000000000000000001");
        assert_eq!(shown("1000000", 6), "1");
        assert_eq!(shown("0", 6), "0");
        assert_eq!(shown("42", 0), "42");
        assert_eq!(shown(&Amount::MAX.to_string(), 18).replace('.', ""), Amount::MAX.to_string());
    }

    #[test]
    fn a_code_is_drawn_for_a_payment_link() {
        let svg = qr("ethereum:0x036CbD53842c5426634e7929541eC2318f3dCF7e@84532/transfer?uint256=1").unwrap();
        assert!(svg.0.contains("<path d=\"M4 4h1"));
        assert!(qr(&"x".repeat(10_000)).is_none());
    }
}
