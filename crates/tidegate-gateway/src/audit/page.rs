//! Decides what the admin listener tells of the audit trail: the newest records that are asked for.

use std::borrow::Cow;
use std::path::PathBuf;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use tidegate_watch::audit::{self, Entry, Filter, PAGE, Reader};

use crate::refusal::OwnReply;
use crate::shared::Shared;

/// `{"records":[{"sequence":…,"hash":"…","record":{…}},…],"more":false}`: the newest thousand, the oldest of them first.
pub(crate) async fn answer(shared: &Shared, query: &str) -> Result<Bytes, Box<OwnReply>> {
    let Some((path, pseudonyms)) = shared.audit.place() else {
        return Err(Box::new(OwnReply::bad_request("there is no audit trail: no state directory")));
    };
    let mut filter = asked(query).map_err(|message| Box::new(OwnReply::bad_request(message)))?;
    let pseudonym = pseudonyms.and_then(|pseudonyms| Some(pseudonyms.pseudonym(filter.users.first()?)));
    filter.users.extend(pseudonym);
    let path = path.to_owned();
    // Whoever has just done something, or just started, finds it.
    shared.audit.written().await;
    // Reads the disk: not on a thread that serves calls.
    let read = tokio::task::spawn_blocking(move || read(path, &filter)).await;
    match read {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(Box::new(OwnReply::unreadable(&error))),
        Err(_) => Err(Box::new(OwnReply::draining())),
    }
}

fn read(path: PathBuf, filter: &Filter) -> Result<Bytes, audit::StoreError> {
    let latest = Reader::open(&path)?.latest(filter, PAGE + 1)?;
    let has_more = latest.len() > PAGE;
    let shown = &latest[latest.len().saturating_sub(PAGE)..];
    let lines: Vec<String> = shown.iter().map(Entry::json_line).collect();
    Ok(format!(r#"{{"records":[{}],"more":{has_more}}}"#, lines.join(",\n")).into())
}

fn asked(query: &str) -> Result<Filter, String> {
    let mut filter = Filter::default();
    for (name, value) in
        query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    {
        let value = decoded(value)?;
        match name {
            _ if value.is_empty() => {}
            "since" => filter.since = Some(audit::since(&value).map_err(|error| error.to_string())?),
            "kind" => filter.kind = Some(value.parse().map_err(|error: audit::UnknownKind| error.to_string())?),
            "user" => filter.users = vec![value.into_owned()],
            "call" => filter.call = Some(value.into_owned()),
            _ => {
                let name: String = name.chars().take(64).collect();
                return Err(format!("no such parameter: {name}; there are since, kind, user and call"));
            }
        }
    }
    Ok(filter)
}

/// A parameter's value, as browsers and scripts encode it.
pub(crate) fn decoded(value: &str) -> Result<Cow<'_, str>, String> {
    // In a time that is not encoded a plus stands before its zone; in a form it is a space. Times here end in Z.
    let value = if value.contains('+') { Cow::Owned(value.replace('+', " ")) } else { Cow::Borrowed(value) };
    let decoded = percent_decode_str(&value).decode_utf8().map_err(|_| "a parameter is no UTF-8".to_owned())?;
    Ok(Cow::Owned(decoded.into_owned()))
}

#[cfg(test)]
mod tests {
    use tidegate_watch::audit::Kind;

    use super::*;

    #[test]
    fn a_query_is_read_as_browsers_and_scripts_write_it() {
        let filter = asked("since=1970-01-01T00%3A00%3A01Z&kind=breaker&user=ada+l%C3%B6ve&call=c-1").unwrap();
        assert_eq!((filter.since, filter.kind), (Some(1_000_000), Some(Kind::Breaker)));
        assert_eq!((filter.users, filter.call), (vec!["ada löve".to_owned()], Some("c-1".to_owned())));
        assert!(asked("").is_ok_and(|filter| filter.since.is_none()));
        assert!(asked("kind=&user=").is_ok_and(|filter| filter.kind.is_none() && filter.users.is_empty()));
        for (wrong, why) in [("since=soon", "is no time"), ("kind=x", "no kind"), ("limit=1", "no such parameter")] {
            assert!(asked(wrong).unwrap_err().contains(why), "{wrong}");
        }
    }
}
