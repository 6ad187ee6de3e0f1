//! Believing logs by vote, where no root can be checked.

use domain::chain::Transfer;

/// A transfer that some groups show and too few deny or confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisputedClaim {
    /// The transfer as it is claimed.
    pub transfer: Transfer,
    /// Who claims it.
    pub claimants: Vec<String>,
}
