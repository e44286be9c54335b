//! `/packages` and its three spellings: install, upgrade and remove packages inside instances.

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::selector;
use super::values::Fields;
use crate::service::guest_work::PackageChange;
use crate::service::selection::Selector;

pub async fn install(call: Call) -> Result<Answer, Rejection> {
    change(call, PackageChange::Install, "install_package").await
}

pub async fn upgrade(call: Call) -> Result<Answer, Rejection> {
    change(call, PackageChange::Upgrade, "upgrade_packages").await
}

pub async fn remove(call: Call) -> Result<Answer, Rejection> {
    change(call, PackageChange::Remove, "remove_packages").await
}

async fn change(call: Call, change: PackageChange, verb: &str) -> Result<Answer, Rejection> {
    let (packages, targets) = input(call.fields())?;
    let task = call
        .service
        .change_packages(&call.caller, change, packages, &targets)
        .await?;
    Ok(Answer::in_progress(verb, &task).accepted())
}

fn input(fields: Fields<'_>) -> Result<(Vec<String>, Vec<Selector>), Rejection> {
    let packages = fields.references(&["packages"])?.unwrap_or_default();
    Ok((packages, selector::read(fields)?))
}

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::input;

    pub fn install() -> About {
        about("Install packages in instances", "install_package", "")
    }

    pub fn upgrade() -> About {
        about(
            "Upgrade packages in instances",
            "upgrade_packages",
            "Without packages, all that are installed.",
        )
    }

    pub fn remove() -> About {
        about("Remove packages from instances", "remove_packages", "")
    }

    fn about(summary: &'static str, verb: &'static str, details: &'static str) -> About {
        About::new(summary, Told::in_progress(&[verb]).with_status(202))
            .details(details)
            .reads_call("Packages", |fields| input(fields).map(drop))
            .may_miss()
    }
}
