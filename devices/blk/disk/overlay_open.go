package disk

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openOverlay opens or makes the file of changes over base.
func openOverlay(o Options, base *Raw) (*Overlay, error) {
	if base.size > maxOverlayDisk {
		return nil, fmt.Errorf("disk %s: %d bytes: an overlay reaches over at most %d", o.name(), base.size, int64(maxOverlayDisk))
	}
	var f *os.File
	var err error
	name := o.OverlayPath
	switch {
	case o.OverlayFile != nil:
		f, name = o.OverlayFile, o.OverlayFile.Name()
	case o.OverlayPath != "":
		f, err = openFile(o.OverlayPath, unix.O_RDWR|unix.O_CREAT, 0o600)
	default:
		f, name, err = tempFile(o.OverlayDir)
	}
	if err != nil {
		return nil, overlayError(o, name, err)
	}
	ov, err := newOverlay(f, base)
	if err != nil {
		if f != o.OverlayFile {
			f.Close()
		}
		return nil, overlayError(o, name, err)
	}
	return ov, nil
}

func overlayError(o Options, name string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOENT):
		hint = ": check that its directory is there"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		hint = ": name a file that can be written, with overlay=PATH"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		hint = ": make room there, or name a file elsewhere, with overlay=PATH"
	case errors.Is(err, unix.EFBIG):
		hint = ": a file as long as the disk is not allowed there (see ulimit -f); name one elsewhere, with overlay=PATH"
	}
	return fmt.Errorf("disk %s: overlay %s: %w%s", o.name(), name, err, hint)
}

// newOverlay takes f over as the file of changes: an empty file becomes one,
// any other must be one.
func newOverlay(f *os.File, base *Raw) (*Overlay, error) {
	var st, bst unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if err := unix.Fstat(base.f.fd, &bst); err != nil {
		return nil, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("not a regular file")
	case st.Dev == bst.Dev && st.Ino == bst.Ino:
		return nil, errors.New("is the image itself")
	}
	if err := checkAccess(f, true); err != nil {
		return nil, err
	}
	if err := lock(f, true); err != nil {
		return nil, err
	}
	// Once more, now that nobody else writes it.
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	ov := &Overlay{base: base, f: newOSFile(f), file: f, g: newGeometry(base.size), durable: st.Nlink > 0}
	ov.m = newBlockMap(ov.g.blocks)
	if st.Size == 0 {
		return ov, ov.create()
	}
	fp, err := fingerprintOf(base)
	if err != nil {
		return nil, err
	}
	if err := ov.load(st.Size, fp); err != nil {
		return nil, err
	}
	return ov, nil
}

// create lays out an empty file. One with a name is made durable now, so that a
// power cut before the first flush leaves a valid overlay without changes.
func (o *Overlay) create() error {
	if !o.durable {
		return o.file.Truncate(o.g.fileLen)
	}
	fp, err := fingerprintOf(o.base)
	if err != nil {
		return err
	}
	// The header first: a power cut in between leaves a file that load calls
	// truncated, and not a long one full of zeroes that could be anything.
	if err := o.f.write(encodeHeader(o.g, fp), 0); err != nil {
		// What is left of a full disk's header would not be taken for empty.
		return errors.Join(err, o.file.Truncate(0))
	}
	err = o.file.Truncate(o.g.fileLen)
	if err == nil {
		// Room for the whole map now, one byte for each 32 KiB of disk: a file
		// system that fills up later fails the write that finds no room, and
		// not the flush behind writes that have been said to be done.
		if err = o.f.fallocate(0, 0, headerLen+o.g.mapLen); err != nil && unsupported(err) {
			err = nil
		}
	}
	if err != nil {
		return errors.Join(err, o.file.Truncate(0))
	}
	if err := o.file.Sync(); err != nil {
		return err
	}
	o.header = true
	return syncDir(o.file.Name())
}

// syncDir makes the name of a new file durable. A file handed in open may have
// no name that leads to it: then it is its maker's affair.
func syncDir(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !unsupported(err) {
		return err
	}
	return nil
}

// load reads header and map. All that the file says is checked against the
// base; nothing in it leads to an allocation beyond the base's map.
func (o *Overlay) load(size int64, fp fingerprint) error {
	h := make([]byte, headerLen)
	if size < headerLen {
		h = h[:size]
	}
	if err := o.f.read(h, 0); err != nil {
		return err
	}
	if err := checkHeader(h, o.g, fp); err != nil {
		return err
	}
	if size < o.g.fileLen {
		return fmt.Errorf("truncated overlay: %d bytes, should be %d: what is missing is lost; remove the file to start anew", size, o.g.fileLen)
	}
	buf := make([]byte, 64*mapPageLen)
	for i := 0; i < len(o.m.pages); {
		p := buf[:min(len(buf), (len(o.m.pages)-i)*mapPageLen)]
		if err := o.f.read(p, headerLen+int64(i)*mapPageLen); err != nil {
			return err
		}
		for ; len(p) > 0; p = p[mapPageLen:] {
			if err := o.m.load(i, p[:mapPageLen]); err != nil {
				return err
			}
			i++
		}
	}
	o.header = true
	return nil
}

// tempFile makes a file without a name.
func tempFile(dir string) (*os.File, string, error) {
	if dir != "" {
		f, err := unlinkedIn(dir)
		return f, dir, err
	}
	f, err := unlinkedIn("/var/tmp")
	if err == nil {
		return f, "/var/tmp", nil
	}
	// /var/tmp comes first because /tmp is often memory.
	if f, err := unlinkedIn("/tmp"); err == nil {
		return f, "/tmp", nil
	}
	return nil, "/var/tmp", err
}

func unlinkedIn(dir string) (*os.File, error) {
	f, err := openFile(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err == nil || !(errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL)) {
		return f, err
	}
	return unlinkedByName(dir)
}

// unlinkedByName is for file systems that make no files without a name.
func unlinkedByName(dir string) (*os.File, error) {
	path := filepath.Join(dir, "smolvmm-overlay-"+rand.Text())
	f, err := openFile(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
