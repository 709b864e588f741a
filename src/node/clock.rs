//! The time, as it is told and kept.

use std::time::{Duration, SystemTime};

use time::{
    OffsetDateTime, format_description::BorrowedFormatItem, format_description::well_known::Rfc3339,
    macros::format_description,
};

/// Now, as events and answers say it: RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn now_text() -> String {
    time_text(SystemTime::now())
}

/// A time as events and answers say it.
#[must_use]
pub fn time_text(time: SystemTime) -> String {
    const FORM: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(time).format(FORM).unwrap_or_default()
}

/// A time as events say it, in milliseconds since 1970.
pub(super) fn millis_in(text: &str) -> Option<u64> {
    u64::try_from(OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos() / 1_000_000).ok()
}

/// Seconds since 1970.
#[must_use]
pub fn now_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Milliseconds since 1970.
pub(super) fn now_millis() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Lets time pass, and none where there is none to pass: a sleep of no time lasts until the clock's next millisecond.
pub async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_no_time_takes_none() {
        // Between two of the clock's milliseconds, as always but in a test.
        tokio::time::advance(Duration::from_micros(300)).await;
        let before = tokio::time::Instant::now();
        pause(Duration::ZERO).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
        pause(Duration::from_millis(7)).await;
        assert!(before.elapsed() >= Duration::from_millis(7));
    }
}
