//! `virtshell-gateway`: see `--help`.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("the gateway has no routes yet")
}
