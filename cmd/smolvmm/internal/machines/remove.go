package machines

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// RunningError is a machine that must be stopped before.
type RunningError struct{ Name string }

func (e *RunningError) Error() string {
	return fmt.Sprintf("machine %s is running: stop it, or use rm -f", e.Name)
}

// Remove removes a machine that has ended: its folders and its sockets.
func (s *Store) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	dir := filepath.Join(s.data, name)
	var sockets []string
	if m, err := s.Get(name); err == nil {
		if m.Alive {
			return &RunningError{name}
		}
		sockets = m.Spec.Sockets
	}
	old := filepath.Join(s.data, oldPrefix+random())
	// The name is free with the data folder's: what else is the machine's goes before.
	err := s.take(name, func() error {
		for _, p := range sockets {
			removeDeadSocket(p)
		}
		return errors.Join(os.RemoveAll(filepath.Join(s.run, name)), os.Rename(dir, old))
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(old)
}

// take calls do while the machine's lock is held by us and the folder is the
// lock's: who removes and who creates meet nobody in between.
func (s *Store) take(name string, do func() error) error {
	f, err := s.lockOf(name)
	switch {
	case err != nil:
		return err
	case f == nil:
		return do()
	}
	defer f.Close()
	for {
		ok, err := tryLock(f)
		if err != nil {
			return fmt.Errorf("machine %s: its lock: %w", name, err)
		}
		if ok {
			break
		}
		if held, err := locked(f); err != nil || held {
			return &RunningError{name}
		}
		// Only those who waited for its end have it, for a moment.
		if err := waitLock(f); err != nil {
			return err
		}
	}
	var ours, there unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &ours); err != nil {
		return err
	}
	if unix.Lstat(filepath.Join(s.data, name, lockName), &there) != nil || ours.Ino != there.Ino || ours.Dev != there.Dev {
		return fmt.Errorf("%w: %s", ErrNone, name) // somebody was faster
	}
	return do()
}

// lockOf opens the lock of the folder that has the name; nil where that has none.
// A folder is never without its lock under its name, unless somebody has been at
// it by hand: what is left is nobody's. One that goes while we look may be
// followed by another with a lock.
func (s *Store) lockOf(name string) (*os.File, error) {
	path := filepath.Join(s.data, name)
	for {
		dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", ErrNone, name)
		} else if err != nil {
			return nil, err
		}
		fd, err := unix.Openat(int(dir.Fd()), lockName, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		var ours, there unix.Stat_t
		serr := unix.Fstat(int(dir.Fd()), &ours)
		dir.Close()
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), filepath.Join(path, lockName)), nil
		case err != unix.ENOENT:
			return nil, &os.PathError{Op: "open", Path: filepath.Join(path, lockName), Err: err}
		case serr != nil:
			return nil, serr
		}
		if unix.Lstat(path, &there) == nil && ours.Ino == there.Ino && ours.Dev == there.Dev {
			return nil, nil
		}
	}
}

// removeDeadSocket removes a socket that nobody listens on.
func removeDeadSocket(path string) {
	st, err := os.Lstat(path)
	if err != nil || st.Mode()&os.ModeSocket == 0 {
		return
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		_ = os.Remove(path)
	}
}

// unfinished is how old a folder on its way in must be to be nobody's any more:
// its lock is there a few milliseconds after it.
const unfinished = time.Minute

// Cleanup removes what dead machines left behind: machines whose process was
// killed, those that were to be removed at their end, and leftovers without a
// machine. all removes every machine that has ended. It gives the names.
func (s *Store) Cleanup(all bool) (removed []string, err error) {
	var errs []error
	ms, err := s.List()
	if err != nil {
		return nil, err
	}
	for _, m := range ms {
		if m.Alive || !all && !m.Spec.Remove && m.State() != Dead {
			continue
		}
		var running *RunningError
		switch err := s.Remove(m.Spec.Name); {
		case err == nil:
			removed = append(removed, m.Spec.Name)
			errs = append(errs, s.Audit(m, AuditRemove, "smolvmm cleanup: "+m.How()))
		case errors.Is(err, ErrNone), errors.As(err, &running):
		default:
			errs = append(errs, err)
		}
	}
	entries, err := os.ReadDir(s.data)
	errs = append(errs, err)
	for _, e := range entries {
		path := filepath.Join(s.data, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), oldPrefix):
			errs = append(errs, os.RemoveAll(path))
		case strings.HasPrefix(e.Name(), newPrefix):
			st, err := e.Info()
			if err == nil && time.Since(st.ModTime()) > unfinished && !s.alive(e.Name()) {
				errs = append(errs, os.RemoveAll(path))
			}
		}
	}
	// Folders of sockets whose machine is gone.
	runs, err := os.ReadDir(s.run)
	errs = append(errs, err)
	for _, e := range runs {
		if _, err := os.Lstat(filepath.Join(s.data, e.Name())); !errors.Is(err, fs.ErrNotExist) || !s.deserted(e.Name()) {
			continue
		}
		// Whoever has the name may remove them; one who takes it now has them.
		var used *InUseError
		if c, err := s.Create(Spec{Name: e.Name()}); err == nil {
			errs = append(errs, c.Discard())
		} else if !errors.As(err, &used) {
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}

// deserted: nobody listens on any socket there. Another data folder's machines
// may have the runtime folder too.
func (s *Store) deserted(name string) bool {
	dir := filepath.Join(s.run, name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		removeDeadSocket(filepath.Join(dir, e.Name()))
	}
	entries, err = os.ReadDir(dir)
	return err == nil && len(entries) == 0
}
