//! Load on one URL, made by Debian's `wrk`.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;

/// What a run of `wrk` saw; every answer was a success.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Answers per second.
    pub per_second: f64,
    /// Half of the answers took no longer.
    pub p50: Duration,
    /// All but one in a hundred took no longer.
    pub p99: Duration,
}

impl Load {
    /// Asks for `url` over so many `connections` for `time`, with these headers; certificates are not checked.
    ///
    /// # Errors
    /// When `wrk` is not installed or fails, or an answer was none with status 2xx.
    pub async fn on(
        url: &str,
        headers: &[(&str, String)],
        connections: usize,
        time: Duration,
    ) -> anyhow::Result<Self> {
        // One thread of it: it shares two cores with what it asks, and one is fast enough to keep the connections busy.
        let mut wrk = Command::new("wrk");
        wrk.args(["--latency", "--threads=1", "--timeout=30s"])
            .arg(format!("--connections={connections}"))
            .arg(format!("--duration={}s", time.as_secs()))
            .args(
                headers
                    .iter()
                    .map(|(name, value)| format!("--header={name}: {value}")),
            )
            .arg(url);
        let output = wrk
            .output()
            .await
            .context("cannot run wrk: install it (apt-get install wrk)")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "wrk failed: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self::parse(&said).with_context(|| format!("wrk on {url} said:\n{said}"))
    }

    fn parse(said: &str) -> anyhow::Result<Self> {
        let complaint = said
            .lines()
            .find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
        if let Some(complaint) = complaint {
            anyhow::bail!("{}", complaint.trim());
        }
        let value = |label: &str| {
            let mut values = said.lines().filter_map(|line| line.trim().strip_prefix(label));
            values
                .next()
                .map(str::trim)
                .with_context(|| format!("no {label}"))
        };
        Ok(Self {
            per_second: value("Requests/sec:")?.parse()?,
            p50: duration(value("50%")?)?,
            p99: duration(value("99%")?)?,
        })
    }
}

/// `503.00us`, `1.20ms`, `2.00s`, `1.00m`
fn duration(text: &str) -> anyhow::Result<Duration> {
    let (number, unit) = text.split_at(
        text.find(|c: char| c.is_ascii_alphabetic())
            .context("a time has a unit")?,
    );
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => anyhow::bail!("no unit of time: {unit}"),
    };
    Ok(Duration::from_secs_f64(number.parse::<f64>()? * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 2s test @ http://127.0.0.1:8080/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   548.14us  503.76us  12.55ms   93.51%
    Req/Sec    31.43k     2.41k   35.79k    80.00%
  Latency Distribution
     50%  427.00us
     75%  580.00us
     90%  0.88ms
     99%    2.69ms
  62551 requests in 2.00s, 41.16MB read
Requests/sec:  31254.98
Transfer/sec:     20.57MB
";

    #[test]
    fn what_wrk_says_is_read() {
        let expected = Load {
            per_second: 31254.98,
            p50: Duration::from_micros(427),
            p99: Duration::from_micros(2690),
        };
        assert_eq!(Load::parse(SAID).unwrap(), expected);
    }

    #[test]
    fn an_answer_that_is_no_success_fails_the_run() {
        for complaint in [
            "  Non-2xx or 3xx responses: 3\n",
            "  Socket errors: connect 0, read 1, write 0, timeout 0\n",
        ] {
            let said = SAID.replace("Requests/sec", &format!("{complaint}Requests/sec"));
            assert_eq!(Load::parse(&said).unwrap_err().to_string(), complaint.trim());
        }
        assert!(Load::parse("").is_err());
    }

    #[test]
    fn times_have_units() {
        for (text, micros) in [
            ("1.50us", 1),
            ("0.88ms", 880),
            ("2.00s", 2_000_000),
            ("1.00m", 60_000_000),
        ] {
            assert_eq!(duration(text).unwrap().as_micros(), micros, "{text}");
        }
        assert!(duration("5").is_err() && duration("5h").is_err());
    }
}
