//! How long a server asks to be left alone.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{AGE, CACHE_CONTROL, HeaderMap, RETRY_AFTER};

/// Returns the wait that `Retry-After` asks for, in seconds or as a date.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = crate::dates::parse_date(text)?;
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

/// Returns how long an answer stays fresh by its `Cache-Control`, less the time that it has spent
/// in caches.
pub fn fresh_for(headers: &HeaderMap) -> Option<Duration> {
    let control = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let seconds: u64 = control
        .flat_map(|value| value.split(','))
        .find_map(|part| part.trim().to_ascii_lowercase().strip_prefix("max-age=")?.parse().ok())?;
    let age = headers.get(AGE).and_then(|age| age.to_str().ok()?.trim().parse().ok()).unwrap_or(0);
    let fresh = seconds.saturating_sub(age);
    (fresh > 0).then(|| Duration::from_secs(fresh))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

    use super::{fresh_for, retry_after};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs.map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "2024-05-06T07:00:00Z".parse().unwrap();
        let wait = |text| retry_after(&headers(&[("retry-after", text)]), now);
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        assert_eq!(wait("Mon, 06 May 2024 07:10:00 GMT"), Some(Duration::from_secs(600)));
        assert_eq!(wait("Mon, 06 May 2024 06:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn an_answer_is_fresh_for_its_age_less_its_time_in_caches() {
        let fresh = |pairs: &[_]| fresh_for(&headers(pairs));
        let minutes = |n: u64| Some(Duration::from_secs(60 * n));
        assert_eq!(fresh(&[("cache-control", "public, Max-Age=600")]), minutes(10));
        assert_eq!(fresh(&[("cache-control", "max-age=600"), ("age", "240")]), minutes(6));
        assert_eq!(fresh(&[("cache-control", "max-age=0, no-cache")]), None);
        assert_eq!(fresh(&[("cache-control", "no-store")]), None);
    }
}
