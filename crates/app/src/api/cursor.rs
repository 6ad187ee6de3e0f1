//! Opaque cursors: where a list goes on. A caller keeps them and gives them back; nothing else is promised.
//!
//! Each kind of list has cursors of its own, so that one of another list is refused instead of misunderstood.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::problem::Problem;

/// The kinds of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Invoices,
    Payments,
    Events,
    Deliveries,
    DeadLetters,
    Endpoints,
}

impl List {
    const fn tag(self) -> u8 {
        match self {
            Self::Invoices => 1,
            Self::Payments => 2,
            Self::Events => 3,
            Self::Deliveries => 4,
            Self::DeadLetters => 5,
            Self::Endpoints => 6,
        }
    }
}

/// The cursor of a place in a list.
pub(super) fn encode(list: List, place: &[u8]) -> String {
    let mut bytes = vec![list.tag()];
    bytes.extend_from_slice(place);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The place of a cursor.
pub(super) fn decode<const N: usize>(list: List, cursor: &str) -> Option<[u8; N]> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (tag, place) = bytes.split_first()?;
    if *tag == list.tag() { place.try_into().ok() } else { None }
}

/// The place of the cursor that a request gives in `field`.
pub(super) fn parse<const N: usize>(list: List, field: &str, cursor: &str) -> Result<[u8; N], Problem> {
    decode(list, cursor).ok_or_else(|| {
        Problem::field(field, "is no cursor of this list: use the `next` of an earlier answer, unchanged")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_belongs_to_one_list() {
        let cursor = encode(List::Events, &7u64.to_be_bytes());
        assert_eq!(decode::<8>(List::Events, &cursor), Some(7u64.to_be_bytes()));
        assert_eq!(decode::<8>(List::Invoices, &cursor), None);
        assert_eq!(decode::<16>(List::Events, &cursor), None);
        for bad in ["", "!", "AA", "Aw", "é"] {
            assert_eq!(decode::<8>(List::Events, bad), None, "{bad}");
        }
    }
}
