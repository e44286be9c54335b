//! Changes of a whole collection, which are none: what is to be changed is missing in the path.

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;

pub async fn name(_: Call) -> Result<Answer, Rejection> {
    Err(Rejection::MissingParameter("name parameter"))
}

/// The same for tasks, which have no names.
pub async fn uuid(_: Call) -> Result<Answer, Rejection> {
    Err(Rejection::MissingParameter("uuid parameter"))
}

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};

    pub fn name() -> About {
        About::new("Refused: whose name is missing", Told::nothing())
    }

    pub fn uuid() -> About {
        About::new("Refused: whose uuid is missing", Told::nothing())
    }

    pub fn status() -> About {
        About::new("Refused: the status is missing", Told::nothing())
    }
}
