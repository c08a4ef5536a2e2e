// Package files is what fetched files are on the host: their digests, folders that
// one process at a time fills, names that only whole files get, and the errors that
// tell of them. It is apart from fetch for who looks at what was fetched without
// taking in an HTTP client.
package files

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// MaxSums bounds a file of digests, in bytes; NetBSD's have a few KiB.
const MaxSums = 1 << 20

// ParseSums reads SHA-512 digests in the form of cksum(1), one a line:
// `SHA512 (name) = 128 hex digits`. Other lines are passed over; of two for
// the same name the first counts.
func ParseSums(b []byte) map[string]string {
	sums := map[string]string{}
	for line := range bytes.Lines(b) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "SHA512 (")
		if !ok {
			continue
		}
		name, digest, ok := strings.Cut(rest, ") = ")
		if !ok || !isDigest(digest) {
			continue
		}
		if _, twice := sums[name]; !twice {
			sums[name] = strings.ToLower(digest)
		}
	}
	return sums
}

func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 64
}

// ReadSums reads a file of digests of the host.
func ReadSums(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSums))
	if err != nil {
		return nil, err
	}
	return ParseSums(b), nil
}

// ErrBusy says that another process has a folder's lock.
var ErrBusy = errors.New("another smolvmm is at work there")

// Lock makes a folder and keeps others out who lock it too, until unlock is
// called or the process ends. Where another has it, the error is ErrBusy.
func Lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%w (%w)", ErrBusy, err)
		}
		return nil, err
	}
	return func() { d.Close() }, nil
}

// WriteFile makes a file of a folder: under another name until it is complete
// and on disk. After an error of fill or of the disk nothing is left.
func WriteFile(dir, name string, fill func(io.Writer) error) (err error) {
	t, err := os.CreateTemp(dir, "."+name+".")
	if err != nil {
		return err
	}
	defer func() {
		t.Close()
		if err != nil {
			os.Remove(t.Name())
		}
	}()
	if err := fill(t); err != nil {
		return err
	}
	if err := t.Chmod(0o644); err != nil {
		return err
	}
	if err := t.Sync(); err != nil {
		return err
	}
	if err := os.Rename(t.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lockPoll is how often LockWait looks: flock(2) can wait by itself, but not
// until a context ends.
const lockPoll = 50 * time.Millisecond

// LockWait is Lock that waits for who has the folder, until the context ends.
func LockWait(ctx context.Context, dir string) (unlock func(), err error) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		if unlock, err = Lock(dir); !errors.Is(err, ErrBusy) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
		case <-tick.C:
		}
	}
}
