//! Dates as feeds write them: those of RFC 822, of ISO 8601 and of C's `asctime`, and what people
//! make of them.
//!
//! Every feed has a date format of its own, so the words of a date are recognized one by one,
//! wherever they stand. A date that cannot be one is none, and never an error: an item's identity
//! does not depend on it.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::Offset;

/// Returns the instant that a date means. A date without a time is midnight, and one without a zone
/// is in UTC.
pub(crate) fn parse_date(text: &str) -> Option<Timestamp> {
    let text = text.trim().to_lowercase();
    let parts = iso_8601(&text).or_else(|| words(&text))?;
    parts.timestamp()
}

/// What is known of a date.
#[derive(Default)]
struct Parts {
    year: i16,
    month: i8,
    day: i8,
    /// The day of the year instead of month and day.
    day_of_year: Option<i16>,
    time: Option<Time>,
    /// Minutes east of Greenwich.
    offset: i32,
}

impl Parts {
    fn timestamp(&self) -> Option<Timestamp> {
        let date = match self.day_of_year {
            Some(day) => {
                let first = Date::new(self.year, 1, 1).ok()?;
                (day <= first.days_in_year()).then_some(())?;
                first.checked_add(jiff::Span::new().days(i64::from(day) - 1)).ok()?
            }
            None => Date::new(self.year, self.month, self.day).ok()?,
        };
        let time = self.time.unwrap_or(Time::midnight());
        let offset = Offset::from_seconds(self.offset * 60).ok()?;
        offset.to_timestamp(DateTime::from_parts(date, time)).ok()
    }
}

/// Reads `2024-05-06T07:08:09.5+02:00` and what is shorter: a year, a month, a day; without hyphens
/// if it has eight digits; with white space before the time or the zone.
fn iso_8601(text: &str) -> Option<Parts> {
    let (date, rest) = match text.find(|c: char| c == 't' || c.is_whitespace()) {
        Some(at) => (&text[..at], text[at + 1..].trim()),
        None => (text, ""),
    };
    let mut parts = Parts { month: 1, day: 1, ..Parts::default() };
    let pieces: Vec<&str> = date.split('-').collect();
    match pieces.as_slice() {
        [year] if year.len() == 4 => parts.year = number(year)?,
        [day] if day.len() == 8 && day.is_ascii() => {
            parts.year = number(&day[..4])?;
            parts.month = number(&day[4..6])?;
            parts.day = number(&day[6..])?;
        }
        [day] if day.len() == 7 && day.is_ascii() => {
            parts.year = number(&day[..4])?;
            parts.day_of_year = Some(number(&day[4..])?);
        }
        [year, day] if year.len() == 4 && day.len() == 3 => {
            parts.year = number(year)?;
            parts.day_of_year = Some(number(day)?);
        }
        [year, month] if year.len() == 4 => {
            parts.year = number(year)?;
            parts.month = number(month)?;
        }
        [year, month, day] if year.len() == 4 => {
            parts.year = number(year)?;
            parts.month = number(month)?;
            // A zone right behind the day, as in 2024-05-06Z.
            parts.day = number(day.trim_end_matches('z'))?;
        }
        _ => return None,
    }
    if rest.is_empty() {
        return Some(parts);
    }
    let zone_at = rest.find(|c: char| !(c.is_ascii_digit() || matches!(c, ':' | '.' | ',')));
    let (time, zone) = rest.split_at(zone_at.unwrap_or(rest.len()));
    parts.time = Some(clock_time(time)?);
    parts.offset = zone_minutes(zone.trim());
    Some(parts)
}

/// Reads the words of `Mon, 06 May 2024 07:08:09 +0200`, `Mon May  6 07:08:09 2024`, `6-May-24`,
/// `2024/05/06 07:08 EST`, in any order that leaves no doubt.
fn words(text: &str) -> Option<Parts> {
    let mut parts = Parts::default();
    for word in text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty())
    {
        if word.contains('/') && word.starts_with(|c: char| c.is_ascii_digit()) {
            let mut pieces = word.split('/');
            parts.year = number(pieces.next()?)?;
            parts.month = number(pieces.next()?)?;
            parts.day = number(pieces.next()?)?;
        } else if word.contains(':') && word.starts_with(|c: char| c.is_ascii_digit()) {
            parts.time = Some(clock_time(word)?);
        } else if parts.time.is_some() && is_zone(word) {
            parts.offset = zone_minutes(word);
        } else {
            for piece in word.split('-').filter(|piece| !piece.is_empty()) {
                parts.read_word(piece)?;
            }
        }
    }
    (parts.year > 0 && parts.month > 0 && parts.day > 0).then_some(parts)
}

impl Parts {
    /// Reads a day, a month's name or a year. The names of days and unknown words say nothing.
    fn read_word(&mut self, word: &str) -> Option<()> {
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
            let value = number::<i16>(&digits)?;
            if self.day == 0 && digits.len() <= 2 {
                self.day = i8::try_from(value).ok()?;
            } else if digits.len() <= 2 {
                // Feeds began in the nineties.
                self.year = value + if value < 90 { 2000 } else { 1900 };
            } else {
                self.year = value;
            }
        } else if let Some(month) = month_named(word) {
            self.month = month;
        }
        Some(())
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.starts_with('+') { None } else { text.parse().ok() }
}

fn month_named(word: &str) -> Option<i8> {
    let names =
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let at = names.iter().position(|name| word.starts_with(name))?;
    i8::try_from(at + 1).ok()
}

/// Reads `7`, `07:08`, `07:08:09` and `07:08:09.5`. A leap second is the second before it.
fn clock_time(text: &str) -> Option<Time> {
    // As in 20240506T070809.
    if matches!(text.len(), 4 | 6) && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let (hour, rest) = text.split_at(2);
        let (minute, second) = rest.split_at(2);
        let second = if second.is_empty() { "0" } else { second };
        return Time::new(number(hour)?, number(minute)?, number::<i8>(second)?.min(59), 0).ok();
    }
    let mut pieces = text.split(':');
    let hour: i8 = number(pieces.next()?)?;
    let minute: i8 = pieces.next().map_or(Some(0), number)?;
    let (second, fraction) = match pieces.next() {
        Some(second) => second.split_once(['.', ',']).unwrap_or((second, "")),
        None => ("0", ""),
    };
    let second: i8 = number(second)?;
    let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanosecond: i32 = number(&nine)?;
    if (hour, minute, second) == (24, 0, 0) {
        return Some(Time::constant(23, 59, 59, 0));
    }
    Time::new(hour, minute, second.min(59), nanosecond).ok()
}

fn is_zone(word: &str) -> bool {
    word.starts_with(['+', '-'])
        || (word.starts_with(char::is_alphabetic) && month_named(word).is_none())
}

/// Returns how many minutes east of Greenwich a zone is. An unknown one counts as Greenwich: most
/// feeds that name none mean it.
fn zone_minutes(zone: &str) -> i32 {
    let zone = zone.strip_prefix("etc/").unwrap_or(zone);
    let zone = match zone.strip_prefix("gmt").or_else(|| zone.strip_prefix("utc")) {
        Some(rest) => rest,
        None => zone,
    };
    let (sign, digits) = match zone.split_at_checked(1) {
        Some(("+", digits)) => (1, digits),
        Some(("-", digits)) => (-1, digits),
        _ => return 60 * hours_of_zone(zone),
    };
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    let (hours, minutes) = match digits.len() {
        0..=2 => (&*digits, "0"),
        length => digits.split_at(length - 2),
    };
    let hours: i32 = hours.parse().unwrap_or(0);
    let minutes: i32 = minutes.parse().unwrap_or(0);
    if hours > 25 { 0 } else { sign * (60 * hours + minutes) }
}

fn hours_of_zone(name: &str) -> i32 {
    match name {
        "pst" | "pt" => -8,
        "pdt" | "mst" | "mt" => -7,
        "mdt" | "cst" | "ct" => -6,
        "cdt" | "est" | "et" => -5,
        "edt" | "ast" | "at" => -4,
        "adt" => -3,
        "a" => -1,
        "n" | "met" | "cet" | "bst" | "west" => 1,
        "mest" | "cest" | "eet" => 2,
        "eest" | "msk" => 3,
        "jst" | "kst" => 9,
        "m" => -12,
        "y" => 12,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::parse_date;

    #[test]
    fn dates_are_read_in_every_form_that_feeds_have() {
        for (text, expected) in [
            ("Thu, 01 Jan 2004 19:48:21 GMT", "2004-01-01T19:48:21Z"),
            ("01 Jan 2004 19:48:21 +0230", "2004-01-01T17:18:21Z"),
            ("Thu, 1 Jan 04 19:48 EST", "2004-01-02T00:48:00Z"),
            ("Thursday, 01-Jan-98 19:48:21 GMT", "1998-01-01T19:48:21Z"),
            ("Thu Jan  1 19:48:21 2004", "2004-01-01T19:48:21Z"),
            ("Thu Jan 1 19:48:21 -0500 2004", "2004-01-02T00:48:21Z"),
            ("Jan 1, 2004", "2004-01-01T00:00:00Z"),
            ("Fri, 2006/09/15 08:19:53 EDT", "2006-09-15T12:19:53Z"),
            ("Thu, 01 Jan 2004 19:48:21 GMT-05:00", "2004-01-02T00:48:21Z"),
            ("2004-01-01T19:48:21Z", "2004-01-01T19:48:21Z"),
            ("2004-01-01T19:48:21.5-05:00", "2004-01-02T00:48:21.5Z"),
            ("2004-01-01 19:48", "2004-01-01T19:48:00Z"),
            ("2004-01-01 19:48:21 +0200", "2004-01-01T17:48:21Z"),
            ("2004-01", "2004-01-01T00:00:00Z"),
            ("2004", "2004-01-01T00:00:00Z"),
            ("20040105", "2004-01-05T00:00:00Z"),
            ("20040105T194821", "2004-01-05T19:48:21Z"),
            ("20040105T1948Z", "2004-01-05T19:48:00Z"),
            ("2004-033", "2004-02-02T00:00:00Z"),
            ("  2004-12-31T23:59:60Z  ", "2004-12-31T23:59:59Z"),
        ] {
            let date = parse_date(text).map(|date| date.to_string());
            assert_eq!(date.as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in ["", "yesterday", "Thu, 32 Jan 2004 19:48:21 GMT", "2004-13-01", "99:99", "12"]
        {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }
}
