package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/smolvmm/smolvmm/builder/runvm/steplog"
	"github.com/smolvmm/smolvmm/builder/toolbox/devnodes"
)

// Bounds of a build step's document.
const (
	maxStepRemove = 16
	maxStepLinks  = 64
	minStepLog    = 1 << 20
	maxStepMinor  = devnodes.Disks * devnodes.Partitions // of the disks that there are nodes for
	maxSkipped    = 20                                   // paths that a report names
)

func checkStep(b *steplog.Step) error {
	if b.Log >= maxStepMinor {
		return fmt.Errorf("log %d: want the minor number of a disk, below %d", b.Log, maxStepMinor)
	}
	if b.Size < minStepLog || b.Size%steplog.Sector != 0 {
		return fmt.Errorf("size %d: want whole sectors, at least %d bytes", b.Size, minStepLog)
	}
	if b.Output < 0 {
		return fmt.Errorf("output %d: want a number of bytes", b.Output)
	}
	if b.Init != "" {
		if err := checkPath("init", b.Init); err != nil {
			return err
		}
	}
	if len(b.Remove) > maxStepRemove || len(b.Links) > maxStepLinks {
		return fmt.Errorf("%d files to remove and %d links; at most %d and %d", len(b.Remove), len(b.Links), maxStepRemove, maxStepLinks)
	}
	for _, p := range b.Remove {
		if err := checkPath("remove", p); err != nil {
			return err
		}
	}
	for from, to := range b.Links {
		if err := errors.Join(checkPath("links", from), checkPath("links", to)); err != nil {
			return err
		}
	}
	return nil
}

// stepFiles is the file system that a step ran on, for its changes to be read.
type stepFiles interface {
	files
	open(name string) (fileSource, error)
	readlink(name string) (string, error)
}

// own is a file that smolinit has written for the step and that is no part of
// what the step did.
type own struct {
	written  inode
	original []byte // what was there before; nil: nothing
	was      inode
}

// holds says whether a changed file still has smolinit's words and not the command's.
func (o *own) holds(st inode) bool {
	return o != nil && st.kind() == modeRegular && st.Ino == o.written.Ino && st.Mtime == o.written.Mtime && st.Size == o.written.Size
}

// memFile is contents in memory as a fileSource.
type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

// sendChanges writes what became of before to w: the list of what is gone, and an
// archive of what is new. It gives the paths that no archive can hold.
func sendChanges(w *steplog.Writer, f stepFiles, before snapshot, mine *own) (skipped []string, err error) {
	after, err := take(f)
	if err != nil {
		return nil, err
	}
	gone, changed := diff(before, after)
	var list []byte
	for _, name := range gone {
		list = append(append(list, name...), 0)
	}
	if err := w.Append(steplog.Gone, list); err != nil {
		return nil, err
	}
	if mine != nil && mine.original == nil {
		changed = slices.DeleteFunc(changed, func(c change) bool { return mine.holds(c.inode) })
	}
	if len(changed) == 0 {
		return nil, nil
	}
	out := &chunks{w: w.Stream(steplog.Changes)}
	a := newArchiver(out)
	for _, c := range changed {
		e := entry{change: c, major: devMajor(c.Rdev), minor: devMinor(c.Rdev)}
		open := func() (fileSource, error) { return f.open(c.name) }
		switch {
		case mine.holds(c.inode):
			e.Size, e.Blocks, e.Mtime = int64(len(mine.original)), int64(len(mine.original)), mine.was.Mtime
			open = func() (fileSource, error) { return memFile{bytes.NewReader(mine.original)}, nil }
		case c.kind() == modeSymlink:
			if e.target, err = f.readlink(c.name); err != nil {
				return nil, err
			}
		case c.kind() == modeSocket:
			if len(skipped) < maxSkipped {
				skipped = append(skipped, c.name)
			}
			continue
		}
		if err := a.add(e, open); err != nil {
			return nil, err
		}
	}
	return skipped, errors.Join(a.close(), out.flush())
}

// devMajor and devMinor take NetBSD's dev_t apart (sys/types.h).
func devMajor(dev uint64) uint32 { return uint32(dev & 0x000fff00 >> 8) }
func devMinor(dev uint64) uint32 { return uint32(dev&0xfff00000>>12 | dev&0xff) }

// chunks gathers what is written into full frames.
type chunks struct {
	w   io.Writer
	buf []byte
}

func (c *chunks) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		room := min(steplog.MaxPayload-len(c.buf), len(p))
		c.buf = append(c.buf, p[:room]...)
		p = p[room:]
		if len(c.buf) == steplog.MaxPayload {
			if err := c.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (c *chunks) flush() error {
	_, err := c.w.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

// copyOutput sends what the command writes, up to limit bytes, and counts the rest.
func copyOutput(w *steplog.Writer, r io.Reader, limit int64) (lost int64, err error) {
	buf := make([]byte, copySize)
	for {
		n, rerr := r.Read(buf)
		keep := int64(n)
		if err != nil {
			keep = 0
		}
		keep = min(keep, limit)
		limit -= keep
		lost += int64(n) - keep
		if keep > 0 {
			// The command goes on even if nobody can hear it.
			err = w.Append(steplog.Output, buf[:keep])
		}
		if errors.Is(rerr, io.EOF) {
			return lost, err
		}
		if rerr != nil {
			return lost, errors.Join(err, rerr)
		}
	}
}

// report ends the log.
func report(w *steplog.Writer, r steplog.Result) error {
	b, err := json.Marshal(r)
	if err == nil && len(b) > steplog.MaxPayload {
		r.Skipped = nil
		b, err = json.Marshal(r)
	}
	if err != nil {
		return err
	}
	return w.Append(steplog.Report, b)
}
