//! Whether every demand of the schema is tried, and nothing is tried that the schema does not demand.

use std::collections::BTreeSet;

use virtshell_tests::schema::{Demand, What, demands};

use crate::fields::{Field, fields};
use crate::rules;

#[test]
fn every_demand_of_the_schema_has_a_row_and_every_row_a_demand() {
    let demanded = demands().unwrap();
    let fields = fields();
    let tried: BTreeSet<Demand> = fields.iter().flat_map(Field::demands).collect();
    let by_message = |demand: &Demand| {
        if let What::Rule(message) = &demand.what {
            rules::refuses(&demand.kind, message)
        } else {
            tried.contains(demand)
        }
    };
    let untried: Vec<_> = demanded.iter().filter(|demand| !by_message(demand)).collect();
    assert!(untried.is_empty(), "in the schema, without a row: {untried:#?}");
    let gone: Vec<_> = tried.difference(&demanded).collect();
    assert!(gone.is_empty(), "in a row, not in the schema: {gone:#?}");
}
