//! A filter that makes the requests of older kubelets valid.
//!
//! An HTTP/2 request names the server in `:authority`. Kubelets before 1.26 put the path of the
//! driver's socket there. A path is not a valid authority, and the server's library refuses such a
//! request before the driver sees it (kubernetes issue 108254). So all requests of a kubelet pass
//! through this filter first: it decodes header blocks and encodes them again with `localhost` as
//! the authority, and passes everything else on unchanged. It does not touch the server's answers.

use std::io;

use loona_hpack::{Decoder, Encoder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy, duplex, split};
use tokio::net::UnixStream;

/// Bytes of the preface with which a connection begins.
const PREFACE_BYTES: usize = 24;

/// Bytes before each frame's content: three for its length, one for its type, one for its flags and
/// four for its stream.
const FRAME_HEAD_BYTES: usize = 9;

/// Types of frames.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// Flags of HEADERS: the block ends in this frame; the frame has padding; the frame has a priority.
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// The most bytes of a frame's content: the default of HTTP/2, which the driver's server does not
/// change.
const FRAME_BYTES_MAX: usize = 16 << 10;

/// The most bytes of a header block. A kubelet's has some hundred.
const HEADER_BLOCK_BYTES_MAX: usize = 64 << 10;

/// The most bytes that are buffered in each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// Returns the connection as the server may read it, with valid requests.
pub(super) fn filter_connection(client: UnixStream) -> DuplexStream {
    let (filter_end, server_end) = duplex(BUFFER_BYTES);
    tokio::spawn(async move {
        let (mut from, mut to) = client.into_split();
        let (mut answers, mut requests) = split(filter_end);
        let forward = async {
            let forwarded = forward_requests(&mut from, &mut requests).await;
            // The server sees the end of the connection, also after an error.
            let _ = requests.shutdown().await;
            forwarded
        };
        let backward = async {
            copy(&mut answers, &mut to).await?;
            to.shutdown().await
        };
        let (forwarded, _) = tokio::join!(forward, backward);
        if let Err(error) = forwarded {
            tracing::debug!(%error, "a connection to the driver broke off");
        }
    });
    server_end
}

/// Passes on everything that the client sends, until the client closes the connection.
async fn forward_requests(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut preface = [0; PREFACE_BYTES];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    let mut decoder = Decoder::new();
    // A block that continues in the next frame: the flags of its first frame, and its bytes so far.
    let mut unfinished: Option<(u8, Vec<u8>)> = None;
    loop {
        let mut head = [0; FRAME_HEAD_BYTES];
        match from.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if length > FRAME_BYTES_MAX {
            return Err(invalid_data("a frame is too long"));
        }
        let mut content = vec![0; length];
        from.read_exact(&mut content).await?;
        let (kind, flags) = (head[3], head[4]);
        let (flags, block) = match (kind, unfinished.take()) {
            (HEADERS, None) => (flags, header_block(flags, &content)?.to_vec()),
            (CONTINUATION, Some((first, mut block))) => {
                block.extend_from_slice(&content);
                (first | flags & END_HEADERS, block)
            }
            (HEADERS | CONTINUATION, _) => {
                return Err(invalid_data("a header block is out of order"));
            }
            (_, Some(_)) => return Err(invalid_data("a header block is interrupted")),
            (_, None) => {
                to.write_all(&head).await?;
                to.write_all(&content).await?;
                continue;
            }
        };
        if block.len() > HEADER_BLOCK_BYTES_MAX {
            return Err(invalid_data("a header block is too long"));
        }
        if flags & END_HEADERS == 0 {
            unfinished = Some((flags, block));
            continue;
        }
        let block = replace_authority(&mut decoder, &block)?;
        let length =
            u32::try_from(block.len()).ok().filter(|length| *length <= FRAME_BYTES_MAX as u32);
        let length =
            length.ok_or_else(|| invalid_data("a header block is too long"))?.to_be_bytes();
        let stream = &head[5..];
        let head = [length[1], length[2], length[3], HEADERS, flags & !(PADDED | PRIORITY)];
        to.write_all(&[&head[..], stream, &block].concat()).await?;
    }
}

/// Returns the header block of a HEADERS frame, without the padding and the priority around it.
fn header_block(flags: u8, content: &[u8]) -> io::Result<&[u8]> {
    let mut block = content;
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (length, rest) =
            block.split_first().ok_or_else(|| invalid_data("a padded frame is empty"))?;
        (padding, block) = (usize::from(*length), rest);
    }
    if flags & PRIORITY != 0 {
        block = block.get(5..).ok_or_else(|| invalid_data("a frame's priority is cut off"))?;
    }
    let end =
        block.len().checked_sub(padding).ok_or_else(|| invalid_data("a frame is all padding"))?;
    Ok(&block[..end])
}

/// Encodes the headers of a block again, with `localhost` as `:authority`. The new block does not
/// depend on an earlier block.
fn replace_authority(decoder: &mut Decoder<'_>, block: &[u8]) -> io::Result<Vec<u8>> {
    let headers = decoder
        .decode(block)
        .map_err(|error| invalid_data(&format!("headers cannot be read: {error:?}")))?;
    let localhost = b"localhost".to_vec();
    let headers = headers.into_iter().map(|(name, value)| match &name[..] {
        b":authority" => (name, localhost.clone()),
        _ => (name, value),
    });
    let headers: Vec<(Vec<u8>, Vec<u8>)> = headers.collect();
    // A new encoder has an empty table, so it never refers to an entry that an earlier block added
    // to the server's table.
    Ok(Encoder::new().encode(headers.iter().map(|(name, value)| (&name[..], &value[..]))))
}

fn invalid_data(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], content].concat()
    }

    /// The header blocks that the filter passes on, read by one decoder, as a server reads them.
    async fn forwarded_headers(frames: &[Vec<u8>]) -> io::Result<Vec<Vec<(String, String)>>> {
        let input = [vec![b'x'; PREFACE_BYTES], frames.concat()].concat();
        let mut output = Vec::new();
        forward_requests(&mut &input[..], &mut output).await?;
        let (mut rest, mut decoder, mut blocks) =
            (&output[PREFACE_BYTES..], Decoder::new(), vec![]);
        while !rest.is_empty() {
            let length = usize::from(rest[1]) << 8 | usize::from(rest[2]);
            let (frame, after) = rest.split_at(FRAME_HEAD_BYTES + length);
            rest = after;
            if frame[3] == HEADERS {
                assert_eq!(frame[4] & END_HEADERS, END_HEADERS);
                let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
                let headers = decoder.decode(&frame[FRAME_HEAD_BYTES..]).unwrap();
                blocks.push(
                    headers.into_iter().map(|(name, value)| (text(name), text(value))).collect(),
                );
            }
        }
        Ok(blocks)
    }

    #[tokio::test]
    async fn a_socket_path_becomes_a_name_and_all_else_stays() {
        let mut encoder = Encoder::new();
        let mut block = |authority: &str| {
            let headers =
                [(":path", "/csi.v1.Node/X"), (":authority", authority), ("te", "trailers")];
            encoder.encode(headers.map(|(name, value)| (name.as_bytes(), value.as_bytes())))
        };
        let (first, second) =
            (block("/var/lib/kubelet/csi.sock"), block("/var/lib/kubelet/csi.sock"));
        let (begin, end) = second.split_at(3);
        let padded = [&[2, 0, 0, 0, 0, 7][..], &block("/x"), &[0, 0]].concat();
        let frames = [
            frame(HEADERS, END_HEADERS, &first),
            frame(0, 1, b"content"),
            frame(HEADERS, 0, begin),
            frame(CONTINUATION, END_HEADERS, end),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
        ];
        let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let expected: Vec<_> =
            [(":path", "/csi.v1.Node/X"), (":authority", "localhost"), ("te", "trailers")]
                .map(text)
                .into();
        assert_eq!(
            forwarded_headers(&frames).await.unwrap(),
            [expected.clone(), expected.clone(), expected]
        );
    }

    #[tokio::test]
    async fn what_is_no_http_2_ends_the_connection() {
        for frames in [
            vec![frame(CONTINUATION, END_HEADERS, b"")],
            vec![frame(HEADERS, 0, b""), frame(0, 0, b"")],
            vec![frame(HEADERS, END_HEADERS | PADDED, &[9, 1])],
            vec![frame(HEADERS, END_HEADERS | PRIORITY, &[1])],
            vec![frame(HEADERS, END_HEADERS, &[0xff; 20])],
            vec![frame(0, 0, &[0; FRAME_BYTES_MAX + 1])],
        ] {
            assert_eq!(
                forwarded_headers(&frames).await.unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{frames:?}"
            );
        }
    }
}
