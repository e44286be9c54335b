//! Waiting for a state, with a long limit and the last thing seen in the message.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// A limit for what normally takes less than a second: only a real failure reaches it.
pub const SOON: Duration = Duration::from_secs(30);

/// How long between two looks.
// 50 ms: much less than what is waited for, and cheap for the API server.
const BETWEEN: Duration = Duration::from_millis(50);

/// Looks until what is seen is `enough`, and returns it.
///
/// # Errors
/// When `limit` is over, with `what` and the last value or error that was seen. An error of `look` does not end the
/// wait: servers start, connections break.
pub async fn wait_for<T, E>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
    enough: impl Fn(&T) -> bool,
) -> anyhow::Result<T>
where
    T: Debug,
    E: Debug,
{
    let start = Instant::now();
    loop {
        let seen = look().await;
        match seen {
            Ok(value) if enough(&value) => return Ok(value),
            seen if start.elapsed() >= limit => {
                anyhow::bail!("waited {limit:?} for {what}; last seen: {seen:#?}")
            }
            _ => tokio::time::sleep(BETWEEN).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn returns_what_was_enough_and_survives_errors() {
        let mut looks = 0;
        let seen = wait_for(
            "three looks",
            SOON,
            async || {
                looks += 1;
                if looks == 1 { Err("not yet") } else { Ok(looks) }
            },
            |n| *n == 3,
        )
        .await
        .unwrap();
        assert_eq!(seen, 3);
    }

    #[tokio::test]
    async fn the_last_value_is_in_the_message() {
        let error = wait_for(
            "a lie",
            Duration::ZERO,
            async || Ok::<_, ()>("Stopped"),
            |_| false,
        )
        .await
        .unwrap_err()
        .to_string();
        assert!(error.contains("a lie") && error.contains("Stopped"), "{error}");
    }
}
