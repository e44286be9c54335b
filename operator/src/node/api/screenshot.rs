//! `screenshot`: what is on the guest's screen, as PNG.

use std::time::Duration;

use super::super::connection::Lane;
use super::super::libvirt::Link;
use super::error::ApiError;
use super::target::Target;
use super::vnc::display;

/// How long QEMU may take to paint its screen into a file. An emulated guest on a busy machine takes a second.
const DEADLINE: Duration = Duration::from_secs(10);
/// How every PNG begins.
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Takes a picture.
pub async fn take(target: &Target) -> Result<Vec<u8>, ApiError> {
    let name = target.name();
    display(target).await?;
    let picture = target.ask_on(Lane::Live, "take a picture of", DEADLINE, Link::screenshot);
    let (mime, bytes) = picture.await?;
    // Compressing a large screen takes longer than a request may hold a thread that serves others.
    let converted = tokio::task::spawn_blocking(move || png(&mime, bytes)).await;
    converted
        .unwrap_or_else(|panicked| Err(panicked.to_string()))
        .map_err(|why| ApiError::Internal(format!("the picture of {name} cannot be read: {why}")))
}

/// A picture as PNG, whatever the hypervisor made.
fn png(mime: &str, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    if bytes.starts_with(SIGNATURE) {
        return Ok(bytes);
    }
    let picture = Pixmap::parse(&bytes).ok_or_else(|| format!("{} bytes of {mime}", bytes.len()))?;
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Screens are flat: the fast setting is nearly as small, in a tenth of the time.
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer
        .write_image_data(picture.pixels)
        .map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok(out)
}

/// A portable pixmap, binary (P6), 8 bit for each of red, green and blue: what QEMU writes.
#[derive(Debug, PartialEq, Eq)]
struct Pixmap<'a> {
    width: u32,
    height: u32,
    pixels: &'a [u8],
}

impl<'a> Pixmap<'a> {
    /// Reads it; absent for anything else. `P6`, width, height and 255 are words between white space, with comments from
    /// `#` to the end of the line; after one more byte of white space come the pixels.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(b"P6")?;
        let width = number(&mut rest)?;
        let height = number(&mut rest)?;
        if number(&mut rest)? != 255 || width == 0 || height == 0 {
            return None;
        }
        let pixels = rest.strip_prefix(b"\n").or_else(|| rest.strip_prefix(b" "))?;
        let length = usize::try_from(u64::from(width) * u64::from(height))
            .ok()?
            .checked_mul(3)?;
        Some(Self {
            width,
            height,
            pixels: pixels.get(..length)?,
        })
    }
}

/// Takes the next number of a pixmap's header, and what is before it.
fn number(rest: &mut &[u8]) -> Option<u32> {
    loop {
        match rest.split_first()? {
            (b'#', after) => {
                let end = after.iter().position(|byte| *byte == b'\n')?;
                *rest = &after[end..];
            }
            (byte, after) if byte.is_ascii_whitespace() => *rest = after,
            _ => break,
        }
    }
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, after) = rest.split_at(digits);
    *rest = after;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIXELS: [u8; 12] = [255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 35, 32];

    fn pixmap(header: &str) -> Vec<u8> {
        [header.as_bytes(), &PIXELS].concat()
    }

    #[test]
    fn a_pixmap_becomes_a_png_with_the_same_pixels() {
        let made = png("image/x-portable-pixmap", pixmap("P6\n2 2\n255\n")).unwrap();
        assert!(made.starts_with(SIGNATURE));
        let mut reader = png::Decoder::new(std::io::Cursor::new(&made))
            .read_info()
            .unwrap();
        let mut pixels = [0; 12];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!(
            (info.width, info.height, info.color_type),
            (2, 2, png::ColorType::Rgb)
        );
        assert_eq!(pixels, PIXELS);
        // What is one already stays as it is.
        assert_eq!(png("image/png", made.clone()).unwrap(), made);
    }

    #[test]
    fn headers_are_read_or_refused() {
        for good in [
            "P6\n2 2\n255\n",
            "P6 2 2 255 ",
            "P6\n# by QEMU\n2\t2\r\n# 9\n255\n",
        ] {
            let bytes = pixmap(good);
            let expected = Pixmap {
                width: 2,
                height: 2,
                pixels: &PIXELS,
            };
            assert_eq!(Pixmap::parse(&bytes), Some(expected), "{good:?}");
        }
        for bad in [
            "",
            "P5\n2 2\n255\n",
            "P6\n2 3\n255\n",
            "P6\n2 2\n65535\n",
            "P6\n-2 2\n255\n",
            "P6\n0 2\n255\n",
            "P6\n4294967295 4294967295\n255\n",
            "P6\n2",
            "P6\n#",
        ] {
            assert_eq!(Pixmap::parse(&pixmap(bad)), None, "{bad:?}");
        }
        assert!(png("image/x-portable-pixmap", vec![]).is_err());
    }
}
