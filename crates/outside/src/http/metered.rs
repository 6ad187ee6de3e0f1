//! A connection that counts, and that stops reading when an exchange has had its share.
//!
//! Guarantees: from [`Meter::begin`] on, no more than the given number of bytes comes in, whatever they
//! are made of: informational answers, headers, chunk framing, trailers. And the number of bytes
//! handed over is known, so that "nothing was sent" can be said with certainty.
//!
//! Deliberately absent: time. The deadline is elsewhere.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The counts of one connection, shared by the stream and whoever runs the exchange.
#[derive(Debug)]
pub(super) struct Meter {
    readable: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// For a connection whose first exchange may let this many bytes in. A connection is read as soon as its driver
    /// runs, which may be before [`Meter::begin`]: it must never be found without a share.
    pub(super) fn new(readable: u64) -> Self {
        Self { readable: AtomicU64::new(readable), written: AtomicU64::new(0) }
    }

    /// A new exchange begins: this many bytes may come in.
    pub(super) fn begin(&self, readable: u64) {
        self.readable.store(readable, Ordering::Relaxed);
        self.written.store(0, Ordering::Relaxed);
    }

    /// Bytes handed over since the exchange began.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether the exchange used up what may come in.
    pub(super) fn is_exhausted(&self) -> bool {
        self.readable.load(Ordering::Relaxed) == 0
    }

    fn note_read(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.readable.store(self.readable.load(Ordering::Relaxed).saturating_sub(bytes), Ordering::Relaxed);
    }

    fn note_written(&self, bytes: usize) {
        self.written.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// A stream with a meter.
pub(super) struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.is_exhausted() {
            return Poll::Ready(Err(io::Error::other("the other side sent more than it may")));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.meter.note_read(buffer.filled().len().saturating_sub(before));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.meter.note_written(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.meter.note_written(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
