//! What benchmarks promise: each is printed beside its limit, and one that is not kept is the benchmark's failure.

use std::fmt::Display;

use anyhow::{Result, bail};

/// Promises, as they are looked at.
#[derive(Debug, Default)]
pub struct Limits {
    broken: Vec<String>,
}

impl Limits {
    /// `what` is promised to be at most `limit`.
    pub fn at_most<T: Copy + PartialOrd + Display>(&mut self, what: &str, is: T, limit: T) {
        self.look(
            is <= limit,
            &format!("{what} is {is}, at most {limit} are promised"),
        );
    }

    /// `what` is promised to be at least `limit`.
    pub fn at_least<T: Copy + PartialOrd + Display>(&mut self, what: &str, is: T, limit: T) {
        self.look(
            is >= limit,
            &format!("{what} is {is}, at least {limit} are promised"),
        );
    }

    // A number that is none (0/0) keeps no promise: callers compare so that it does not.
    fn look(&mut self, kept: bool, sentence: &str) {
        if !kept {
            self.broken.push(sentence.to_owned());
        }
    }

    /// Says how it went.
    ///
    /// # Errors
    /// When a promise was not kept; the message names all of those.
    pub fn verdict(self) -> Result<()> {
        if !self.broken.is_empty() {
            bail!("promises not kept:\n  {}", self.broken.join("\n  "));
        }
        println!("all promises kept");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_named() {
        let mut limits = Limits::default();
        limits.at_most("one", 1.0, 1.0);
        limits.at_least("two", 2, 2);
        limits.at_most("three", 3.5, 3.0);
        limits.at_least("four", f64::NAN, 1.0);
        let said = limits.verdict().unwrap_err().to_string();
        assert_eq!(
            said,
            "promises not kept:\n  three is 3.5, at most 3 are promised\n  four is NaN, at least 1 are promised"
        );
        assert!(Limits::default().verdict().is_ok());
    }
}
