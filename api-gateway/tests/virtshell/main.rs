//! The conformance rows of VirtShell v1 that the gateway serves, over HTTP against a real API server.
//!
//! A test is named after its row (`v_001_...`); what has no row of its own stands beside the rows of its collection.
//!
//! No guest runs here: of a row that acts on guests the requests and answers are checked, and what the answers promise is seen
//! in real guests by `tests/tests/e2e_rest_guests.rs` ([`ON_REAL_GUESTS`]).

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a failed helper fails its test; a table is as long as it is"
)]

#[path = "../support/mod.rs"]
mod support;

mod agents;
mod calls;
mod enviroments;
mod files;
mod fuzz;
mod groups;
mod guest_work;
mod hosts;
mod images;
mod instances;
mod outage;
mod packages;
mod permissions;
mod process;
mod properties;
mod protocol;
mod provisioners;
mod reference;
mod reference_examples;
mod refused;
mod sections;
mod settings;
mod tasks;
mod users;
mod writes;

/// Rows that act on guests. Not among them are those of which only what is written down differs, not what a host does: V-104,
/// V-107, V-109, V-111, V-113, V-116 (other spellings, defaults and refusals of a creation, a declared address), V-132 (a stored
/// value), V-179 (no target).
const ON_REAL_GUESTS: [&str; 30] = [
    "v_017", "v_018", "v_019", "v_020", "v_021", "v_022", "v_099", "v_102", "v_103", "v_105", "v_106",
    "v_112", "v_114", "v_115", "v_129", "v_130", "v_131", "v_133", "v_134", "v_135", "v_136", "v_137",
    "v_171", "v_172", "v_173", "v_174", "v_175", "v_176", "v_177", "v_178",
];

#[test]
fn rows_that_act_on_guests_do_so_in_real_ones() {
    let suite = include_str!("../../../tests/tests/e2e_rest_guests.rs");
    let names: Vec<&str> = suite
        .lines()
        .filter_map(|line| line.strip_prefix("fn "))
        .collect();
    for row in ON_REAL_GUESTS {
        assert!(
            names.iter().any(|name| name.contains(row)),
            "{row} is not in e2e_rest_guests"
        );
    }
}
