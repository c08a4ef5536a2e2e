package cli

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm"
)

// parseVsock reads CID,PATH; nothing is no device.
func parseVsock(spec string) (*vmm.Vsock, error) {
	if spec == "" {
		return nil, nil
	}
	cid, path, ok := strings.Cut(spec, ",")
	n, err := strconv.ParseUint(cid, 10, 64)
	if !ok || err != nil || path == "" {
		return nil, Usagef("-vsock %q: must be CID,PATH, as 3,/tmp/v.sock", spec)
	}
	if n < vmm.MinVsockCID || n > vmm.MaxVsockCID {
		return nil, Usagef("-vsock %s: a guest's CID is from %d to %d", spec, uint64(vmm.MinVsockCID), uint64(vmm.MaxVsockCID))
	}
	return &vmm.Vsock{CID: n, Path: path}, nil
}

// vsockSocket is the socket of -vsock. It listens before the keeper starts, which has
// to know its file.
type vsockSocket struct {
	path  string // empty: there is none
	inode uint64
	file  *os.File
	kept  bool // a keeper removes it
}

// openVsock makes the socket of a configuration, and hands it over in it.
func openVsock(cfg *vmm.Config) (*vsockSocket, error) {
	v := cfg.Vsock
	if v == nil || v.Path == "" || v.Listener != nil {
		return &vsockSocket{}, nil
	}
	l, err := ListenUnix(v.Path)
	if err != nil {
		return nil, Usagef("-vsock %s: %w", v.Path, err)
	}
	defer l.Close()
	s := &vsockSocket{path: v.Path}
	var st unix.Stat_t
	if err = unix.Lstat(v.Path, &st); err == nil {
		s.inode = st.Ino
		s.file, err = l.File()
	}
	if err != nil {
		return nil, Usagef("-vsock %s: %w", v.Path, Plain(err))
	}
	l.SetUnlinkOnClose(false)
	own := *v
	own.Listener = s.file
	cfg.Vsock = &own
	return s, nil
}

// job is what a keeper has to do.
func (s *vsockSocket) job() []SocketFile {
	if s.path == "" {
		return nil
	}
	return []SocketFile{{Path: s.path}}
}

// close removes the socket's file, unless a keeper does.
func (s *vsockSocket) close() {
	if s.path == "" {
		return
	}
	s.file.Close() // the machine has its own, if there was one
	var st unix.Stat_t
	if !s.kept && unix.Lstat(s.path, &st) == nil && st.Ino == s.inode {
		_ = unix.Unlink(s.path)
	}
}
