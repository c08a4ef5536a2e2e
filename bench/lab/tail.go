package main

import (
	"bytes"
	"strings"
	"sync"
)

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	buf  []byte
	lost int // bytes before buf
}

// maxTail bounds a tail, in bytes.
const maxTail = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - maxTail; n > maxTail {
		t.buf = append(t.buf[:0], t.buf[n:]...)
		t.lost += n
	}
	return len(p), nil
}

func (t *tail) total() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost + len(t.buf)
}

// since returns what was written after the first n bytes and is still kept.
func (t *tail) since(n int) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf[min(max(0, n-t.lost), len(t.buf)):])
}

// maxLines bounds what an error shows of the console: a panic's registers and call trace fit in.
const maxLines = 60

// lines gives the last lines behind a heading, or nothing where there are none.
func (t *tail) lines(heading string) string {
	text := strings.TrimSpace(strings.ReplaceAll(string(t.since(0)), "\r", ""))
	if text == "" {
		return ""
	}
	l := strings.Split(text, "\n")
	return heading + "\n" + strings.Join(l[max(0, len(l)-maxLines):], "\n")
}

// panicLine is the console's line that says why the kernel ended.
func (t *tail) panicLine() string {
	for line := range strings.Lines(string(t.since(0))) {
		if _, why, ok := strings.Cut(line, "Kernel panic - "); ok {
			return "kernel panic: " + strings.TrimSpace(why)
		}
	}
	return ""
}

// firstError is QEMU's first line that is not a warning.
func (t *tail) firstError() string {
	for line := range strings.SplitSeq(string(t.since(0)), "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "warning:") {
			return line
		}
	}
	return ""
}
