//! What a real kube-apiserver admits and refuses, and with which words.
//!
//! - `limits`: every limit, word list, pattern and required field of every kind.
//! - `rules`: every CEL rule, and the admission policies that anybody meets.
//! - `accounts`: what each identity may write.
//! - `surface`: what users see: explain, columns, categories, defaults, samples, the kustomizations.
//!
//! A demand of the schema without a row here, or a row without a demand, fails `coverage`.

mod accounts;
mod coverage;
mod kinds;
mod limits;
mod rules;
mod surface;
