package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
)

// ReceiveTree takes entries up to TypeDone and writes them to a place. Whatever
// the other side sends, nothing outside Dir/Name is written, read or followed: a
// file takes the place of what was there only when it is whole, a folder is
// filled through an os.Root of its own, and no mode has the bits that give a
// program another user's rights. Bytes counts file data.
func ReceiveTree(c *Conn, to Place) (bytes int64, err error) {
	parent, err := os.OpenRoot(to.Dir)
	if err != nil {
		return 0, err
	}
	defer parent.Close()
	r := receiver{conn: c, parent: parent, name: to.Name}
	defer func() { err = errors.Join(err, r.close(err != nil)) }()
	for first := true; ; first = false {
		t, b, err := c.Receive()
		if err != nil {
			return r.bytes, ended0(err)
		}
		switch t {
		case TypeDone:
			if first {
				return 0, protocolf("a copy of nothing")
			}
			return r.bytes, r.endFile()
		case TypeEntry:
			var e Entry
			if err := decode(b, &e); err != nil {
				return r.bytes, err
			}
			if err := checkEntry(e, first); err != nil {
				return r.bytes, err
			}
			if err := r.endFile(); err != nil {
				return r.bytes, err
			}
			if err := r.begin(e); err != nil {
				return r.bytes, err
			}
		case TypeData:
			if err := r.data(b); err != nil {
				return r.bytes, err
			}
			first = false
		default:
			return r.bytes, protocolf("message %d in a copy", t)
		}
	}
}

// ended0 names a stream that ended in the middle.
func ended0(err error) error {
	var remote *RemoteError
	if errors.As(err, &remote) || errors.Is(err, ErrProtocol) {
		return err
	}
	return fmt.Errorf("the copy was cut short: %w", err)
}

type receiver struct {
	conn   *Conn
	parent *os.Root // the folder that is there
	name   string   // in parent
	root   *os.Root // of a folder that is copied; nil while a single file is
	single bool     // a file or link: nothing may follow
	bytes  int64

	// The file that is being written.
	in      *os.Root
	file    *os.File
	temp    string
	entry   Entry
	folders []Entry // their modes and times come when all is in them
	names   int     // bytes of the folders' names
}

// errNoName: / or "." was copied into a folder that is there.
var errNoName = errors.New("what is copied has no name of its own: name the copy too")

// maxNames bounds what is kept of folders until the end, in bytes of their names.
const maxNames = 64 << 20

// tempName is what a file is called until it is whole.
func tempName(name string) string {
	return path.Join(path.Dir(name), ".smolvmm-"+NewKey().String()[:16])
}

// begin makes an entry, or begins to.
func (r *receiver) begin(e Entry) error {
	if r.single {
		return protocolf("entry %q behind a single file", line(e.Name))
	}
	in, name := r.root, e.Name
	if e.Name == "." {
		if r.name == "" {
			r.name = e.Base
		}
		if r.name == "" {
			return errNoName
		}
		in, name = r.parent, r.name
		r.single = e.Kind != KindFolder
	} else if in == nil {
		return protocolf("entry %q in no folder", line(e.Name))
	}
	switch e.Kind {
	case KindFolder:
		// The other's mode comes last: until then we must be able to write.
		if err := in.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		info, err := in.Lstat(name)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s: there is something here that is no folder", r.shown(e))
		}
		if e.Name == "." {
			if r.root, err = in.OpenRoot(name); err != nil {
				return err
			}
		}
		if r.names += len(e.Name) + 64; r.names > maxNames {
			return protocolf("more folders than one copy takes")
		}
		r.folders = append(r.folders, Entry{Name: e.Name, Mode: e.Mode, Mtime: e.Mtime})
	case KindLink:
		temp := tempName(name)
		if err := in.Symlink(e.Target, temp); err != nil {
			return err
		}
		if err := in.Rename(temp, name); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", r.shown(e), err), in.Remove(temp))
		}
	case KindFile:
		temp := tempName(name)
		f, err := in.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		r.in, r.file, r.temp, r.entry = in, f, temp, e
		r.entry.Name = name
		return f.Truncate(e.Size)
	}
	return nil
}

// shown is an entry's name in an error.
func (r *receiver) shown(e Entry) string { return path.Join(r.name, line(e.Name)) }

// data writes bytes of the file at hand.
func (r *receiver) data(b []byte) error {
	if r.file == nil || len(b) <= 8 {
		return protocolf("%d bytes of no file", len(b))
	}
	off, b := binary.LittleEndian.Uint64(b), b[8:]
	if size := uint64(r.entry.Size); off > size || uint64(len(b)) > size-off {
		return protocolf("bytes behind the end of %q", line(r.entry.Name))
	}
	n, err := r.file.WriteAt(b, int64(off))
	r.bytes += int64(n)
	return err
}

// endFile gives the file at hand its mode, time and name.
func (r *receiver) endFile() error {
	if r.file == nil {
		return nil
	}
	f := r.file
	err := f.Chmod(fs.FileMode(r.entry.Mode) & fs.ModePerm)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	r.file = nil
	if err == nil {
		err = times(r.in, r.temp, r.entry.Mtime)
	}
	if err == nil {
		err = r.in.Rename(r.temp, r.entry.Name)
	}
	if err != nil {
		return errors.Join(err, r.in.Remove(r.temp))
	}
	return nil
}

// close puts modes and times on the folders, the deepest first, and removes what
// is not whole.
func (r *receiver) close(failed bool) error {
	var errs []error
	if r.file != nil {
		r.file.Close()
		errs = append(errs, r.in.Remove(r.temp))
	}
	for i := len(r.folders) - 1; i >= 0; i-- {
		e := r.folders[i]
		err := r.root.Chmod(e.Name, fs.FileMode(e.Mode)&fs.ModePerm)
		if err == nil {
			err = times(r.root, e.Name, e.Mtime)
		}
		if err != nil && !failed {
			errs = append(errs, err)
		}
	}
	if r.root != nil {
		errs = append(errs, r.root.Close())
	}
	return errors.Join(errs...)
}

// Fetch copies a path of the guest's to a place on this side. Where the place has
// no name the copy has that of the path asked for, whatever the guest calls it:
// otherwise its choice would fall on any file in that folder.
func Fetch(ctx context.Context, stream io.ReadWriteCloser, from string, follow bool, to Place) (bytes int64, err error) {
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	if to.Name == "" {
		if to.Name = baseOf(from); to.Name == "" {
			return 0, fmt.Errorf("%s: %w", from, errNoName)
		}
	}
	c := NewConn(stream)
	if err := c.request(Request{Op: OpRead, Path: from, Follow: follow}); err != nil {
		return 0, ended(ctx, err)
	}
	bytes, err = ReceiveTree(c, to)
	return bytes, ended(ctx, err)
}

// Store copies a path of this side to the guest's.
func Store(ctx context.Context, stream io.ReadWriteCloser, from string, follow bool, to string) (Skipped, error) {
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	c := NewConn(stream)
	if err := c.request(Request{Op: OpWrite, Path: to}); err != nil {
		return nil, ended(ctx, err)
	}
	// The guest may end it in the middle: its words count, not the broken pipe.
	answer := make(chan error, 1)
	go func() {
		t, _, err := c.Receive()
		if err == nil && t != TypeDone {
			err = protocolf("message %d as the end of a copy", t)
		}
		if err != nil {
			stream.Close()
		}
		answer <- err
	}()
	skipped, err := SendTree(c, from, follow)
	if err != nil {
		// Either this side's own files are at fault, or the stream, and then
		// the guest has said why.
		_ = c.SendError(err)
		var gone *net.OpError
		if !errors.As(err, &gone) && !errors.Is(err, io.ErrClosedPipe) {
			stream.Close()
			<-answer
			return skipped, ended(ctx, err)
		}
	}
	return skipped, ended(ctx, <-answer)
}
