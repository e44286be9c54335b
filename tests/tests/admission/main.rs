//! What a real kube-apiserver admits and refuses, and with which words.
//!
//! - `fields` has every limit, word list, pattern and required field of every kind; `limits` tries them.
//! - `rules` has every CEL rule, and the admission policies that anybody meets; `trial` tries them with `kubectl`.
//! - `accounts`: what each identity may write.
//! - `surface`: what users see: explain, columns, categories, defaults, samples, the kustomizations.
//!
//! A demand of the schema without a row here, or a row without a demand, fails `coverage`.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![expect(
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    reason = "a table reads best flat, with its values in place"
)]

mod accounts;
mod coverage;
mod fields;
mod kinds;
mod limits;
mod rules;
mod surface;
mod trial;
