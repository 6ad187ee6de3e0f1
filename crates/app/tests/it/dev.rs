//! The tour as its user runs it: the real binary, and every claim it prints.

use std::process::Command;

#[test]
fn every_claim_of_the_tour_holds() {
    let data = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_quittance"))
        .args(["dev", "--once", "--json", "--listen", "127.0.0.1:0", "--data"])
        .arg(data.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    let report: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}\n{words}"));
    let claims = report["claims"].as_array().unwrap();
    let broken: Vec<_> = claims.iter().filter(|claim| claim["held"] != true).collect();
    assert!(broken.is_empty(), "{broken:#?}\n{words}");
    assert_eq!((output.status.code(), &report["held"]), (Some(0), &true.into()), "{words}");

    let chapters: std::collections::BTreeSet<_> =
        claims.iter().map(|claim| claim["chapter"].to_string()).collect();
    assert_eq!(chapters.len(), 7, "every chapter claims something: {chapters:?}");
    let readers = report["comparison"].as_array().unwrap();
    assert_eq!(readers.len(), 6, "the product and one naive reader for each provider");
}

#[test]
fn what_cannot_be_played_is_refused_with_a_reason() {
    let refused = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_quittance")).arg("dev").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, words) = refused(&["--once", "--listen", "0.0.0.0:0"]);
    assert_eq!(code, Some(2));
    assert!(words.contains("loopback"), "{words}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, words) = refused(&["--once", "--listen", &taken.local_addr().unwrap().to_string()]);
    assert_eq!(code, Some(1));
    assert!(words.contains("another port"), "{words}");

    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("quittance.db"), "").unwrap();
    let (code, words) =
        refused(&["--once", "--listen", "127.0.0.1:0", "--data", data.path().to_str().unwrap()]);
    assert_eq!(code, Some(2));
    assert!(words.contains("earlier tour"), "{words}");
}
