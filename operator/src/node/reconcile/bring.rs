//! Brings what the files of a machine are made from: images, and the disks of another Instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtshell_crds::instance::ResolvedImage;

use super::super::context::{Brought, Record};
use super::super::goal::{CloneSource, Goal, Machine};
use super::super::perform::{PerformError, Performer, image_key};
use super::super::plan::Waiting;
use super::super::report::{Failure, Outcome};
use super::super::storage::{Storage, StorageError};
use super::{Ended, Look, RESYNC, Seen, failure};

/// How long a look waits for an image or a copy before it reports and leaves: what takes longer asks for another look.
const ERRAND_PATIENCE: Duration = Duration::from_millis(500);
/// How often the progress of a download is written.
const PROGRESS_PERIOD: Duration = Duration::from_secs(5);

impl Look<'_> {
    /// Brings what the files are made from; `Err` is the end of this look.
    pub(super) async fn bring(
        &self,
        waiting: Waiting,
        performer: &Performer<'_>,
        goal: &Goal,
        seen: &Seen,
        record: &mut Record,
    ) -> Result<(), Ended> {
        let Some(machine) = performer.machine else {
            return Err((Some(RESYNC), None));
        };
        let Some(source) = machine.clone_of.as_ref().filter(|_| waiting == Waiting::Copy) else {
            return self.fetch(machine, seen, record).await;
        };
        let outcome = Outcome::Waiting(waiting, format!("copying the disks of {}", source.name));
        self.report(Some(machine), Some(seen), &outcome, record).await;
        match self.copy(machine, source, performer).await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(self.failed(goal, Some(seen), &error, record).await),
            None => Err((Some(RESYNC), None)),
        }
    }

    /// Copies the disks of `source`; `None` while that goes on.
    async fn copy(
        &self,
        machine: &Machine,
        source: &CloneSource,
        performer: &Performer<'_>,
    ) -> Option<Result<(), PerformError>> {
        let (context, connection) = (Arc::clone(self.context), Arc::clone(performer.connection));
        let (machine, source, uuid) = (machine.clone(), source.clone(), performer.uuid.clone());
        let uid = machine.id.uid.clone();
        let copying = async move {
            let performer = Performer {
                context: &context,
                connection: &connection,
                id: &machine.id,
                machine: Some(&machine),
                uuid,
            };
            performer.clone_disks(&machine, &source).await
        };
        let copies = &self.context.copies;
        copies
            .result(
                &uid,
                String::new(),
                ERRAND_PATIENCE,
                copying,
                self.look_again(&uid),
            )
            .await
    }

    /// Asks for a look, when it is called.
    fn look_again(&self, uid: &str) -> impl FnOnce() + Send + use<> {
        let (requests, uid) = (self.context.requests.clone(), uid.to_owned());
        move || requests.now(&uid)
    }

    /// Brings the images into the cache; `Err` is the end of this look: a failure, or a download that takes longer.
    async fn fetch(&self, machine: &Machine, seen: &Seen, record: &mut Record) -> Result<(), Ended> {
        let began = Instant::now();
        let waiting_since = *record.waiting_since.get_or_insert_with(|| self.context.now());
        let missing: Vec<_> = machine
            .images()
            .filter(|i| !has_image(i, record))
            .cloned()
            .collect();
        let wish = missing.iter().map(image_key).collect();
        let fetching = ensure(self.context.storage.clone(), missing);
        let uid = &machine.id.uid;
        let fetches = &self.context.fetches;
        match fetches
            .result(uid, wish, ERRAND_PATIENCE, fetching, self.look_again(uid))
            .await
        {
            Some(Ok(brought)) => {
                let waited = self
                    .context
                    .now()
                    .saturating_sub(waiting_since)
                    .max(began.elapsed());
                record.timings.image_ms = i64::try_from(waited.as_millis()).unwrap_or(i64::MAX);
                record.waiting_since = None;
                record.images.extend(brought.images);
                record.boot = brought.boot.or(record.boot.take());
                Ok(())
            }
            Some(Err(error)) => {
                record.waiting_since = None;
                let failure = Failure {
                    image: true,
                    ..failure(&PerformError::Storage(error))
                };
                Err(self
                    .report_failure(Some(machine), Some(seen), failure, record)
                    .await)
            }
            None => {
                let now = self.context.now();
                if record
                    .progress_told
                    .is_none_or(|told| now.saturating_sub(told) >= PROGRESS_PERIOD)
                {
                    record.progress_told = Some(now);
                    let outcome = Outcome::Waiting(Waiting::Image, self.progress(machine));
                    self.report(Some(machine), Some(seen), &outcome, record).await;
                }
                Err((Some(PROGRESS_PERIOD), None))
            }
        }
    }

    fn progress(&self, machine: &Machine) -> String {
        let storage = &self.context.storage;
        let Some((image, progress)) = machine
            .images()
            .find_map(|i| Some((i, storage.image_progress(i)?)))
        else {
            return "preparing the image".to_owned();
        };
        let (done, rate) = (
            progress.bytes >> 20,
            progress.bytes_per_second as f64 / f64::from(1 << 20),
        );
        let of = match (progress.total, progress.percent()) {
            (Some(total), Some(percent)) => format!(" of {} MiB ({percent} %)", total >> 20),
            _ => " MiB".to_owned(),
        };
        format!("downloading {}: {done}{of}, {rate:.1} MiB/s", image.name)
    }
}

pub(super) fn has_images(machine: &Machine, record: &Record) -> bool {
    machine.images().all(|image| has_image(image, record))
}

fn has_image(image: &ResolvedImage, record: &Record) -> bool {
    let content = image.url.is_empty() || record.images.iter().any(|(known, _)| *known == image_key(image));
    content && (image.boot.is_none() || record.boot.is_some())
}

async fn ensure(storage: Storage, images: Vec<ResolvedImage>) -> Result<Brought, StorageError> {
    let mut brought = Brought::default();
    for image in &images {
        if !image.url.is_empty() {
            let cached = storage.ensure_image(image).await?;
            brought.images.push((image_key(image), cached));
        }
        if image.boot.is_some() {
            brought.boot = storage.ensure_boot(image).await?;
        }
    }
    Ok(brought)
}
