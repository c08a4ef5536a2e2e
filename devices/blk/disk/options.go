package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/devices/blk"
)

// Options say what backs a disk. Files handed in open belong to the backend
// once Open has succeeded, which closes them at Close.
type Options struct {
	// Path names the image, a raw file or a block device; File is it already
	// open, and Path then only names it in messages.
	Path string
	File *os.File

	// ReadOnly opens the image for reading and offers the guest a read-only
	// disk (VIRTIO_BLK_F_RO).
	ReadOnly bool

	// Overlay leaves the image untouched and keeps changes in a file of its
	// own: OverlayPath, made if it is not there and continued if it is;
	// OverlayFile, that file already open for reading and writing; or, with
	// neither, an unlinked file in OverlayDir which ends with the machine.
	Overlay     bool
	OverlayPath string
	OverlayFile *os.File

	// OverlayDir is where unlinked overlays go; empty stands for /var/tmp and,
	// where that cannot be written, /tmp.
	OverlayDir string

	// Serial is what the guest reads as the disk's identity, at most 20 bytes
	// of printable ASCII; empty stands for the image's file name, shortened.
	Serial string
}

// Files gives the open files of a backend, for a snapshot to hand on: the image
// and, for an overlay, the file of changes (else nil). They stay owned by the
// backend. The overlay's file is complete after Freeze, until the next write.
type Files interface {
	Files() (image, overlay *os.File)
}

// Open opens, checks and locks what the options name. Each error is one line
// that names the file.
func Open(o Options) (blk.Backend, error) {
	if o.ReadOnly && o.Overlay {
		return nil, errors.New("disk " + o.name() + ": ro and overlay exclude each other: an overlay never writes its image")
	}
	if !o.Overlay && (o.OverlayPath != "" || o.OverlayFile != nil) {
		return nil, errors.New("disk " + o.name() + ": an overlay file without overlay")
	}
	if o.OverlayPath != "" && o.OverlayFile != nil {
		return nil, errors.New("disk " + o.name() + ": both an overlay path and an open overlay file")
	}
	serial, err := o.serial()
	if err != nil {
		return nil, err
	}
	img, err := openImage(o, serial)
	if err != nil {
		return nil, err
	}
	if !o.Overlay {
		return img, nil
	}
	ov, err := openOverlay(o, img)
	if err != nil {
		// The caller keeps its own file when Open fails.
		if o.File == nil {
			img.Close()
		}
		return nil, err
	}
	return ov, nil
}

func (o Options) name() string {
	switch {
	case o.Path != "":
		return o.Path
	case o.File != nil:
		return o.File.Name()
	}
	return "(unnamed)"
}

func (o Options) serial() (string, error) {
	s := o.Serial
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return "", fmt.Errorf("disk %s: serial %q: only printable ASCII", o.name(), s)
		}
	}
	if len(s) > blk.SerialLen {
		return "", fmt.Errorf("disk %s: serial %q: %d bytes, at most %d", o.name(), s, len(s), blk.SerialLen)
	}
	if s != "" {
		return s, nil
	}
	b := []byte(filepath.Base(o.name()))
	b = b[:min(len(b), blk.SerialLen)]
	for i, c := range b {
		if c <= 0x20 || c > 0x7e {
			b[i] = '_'
		}
	}
	return string(b), nil
}

// openImage opens the image itself: for writing unless the disk is read-only
// or the base of an overlay.
func openImage(o Options, serial string) (*Raw, error) {
	ro := o.ReadOnly || o.Overlay
	f, err := o.File, error(nil)
	if f == nil {
		if o.Path == "" {
			return nil, errors.New("disk: no image named")
		}
		flags := unix.O_RDWR
		if ro {
			flags = unix.O_RDONLY
		}
		if f, err = openFile(o.Path, flags, 0); err != nil {
			return nil, diskError(o.name(), err)
		}
	}
	r, err := newRaw(f, ro, serial)
	if err == nil {
		err = lock(f, !ro)
	}
	if err != nil {
		if o.File == nil {
			f.Close()
		}
		return nil, diskError(o.name(), err)
	}
	return r, nil
}

// openFile opens without waiting for the other end of a FIFO, and without the
// runtime's poller, which is of no use for files.
func openFile(path string, flags int, mode uint32) (*os.File, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, mode)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&unix.O_ACCMODE); err != nil {
			unix.Close(fd)
			return nil, err
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// diskError puts a failure into one line for the user, with what to do where
// that is known.
func diskError(name string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOENT):
		hint = ": check the path, or make an empty disk with truncate -s 1G FILE"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		hint = ": check the file's owner and mode, or attach it with ro or overlay if it need not be written"
	case errors.Is(err, unix.EROFS):
		hint = ": attach it with ro or overlay"
	case errors.Is(err, unix.EISDIR):
		hint = ": a disk is a raw image file or a block device"
	}
	return fmt.Errorf("disk %s: %w%s", name, err, hint)
}
