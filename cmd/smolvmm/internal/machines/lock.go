package machines

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The lock is one of open file descriptions (fcntl(2), F_OFD_SETLK): it goes with
// the process however that ends, and unlike flock(2)'s it can be asked about
// without being taken, so that nobody who looks gets in the way of who locks.
// A machine holds a write lock; who waits for its end waits for a read lock, and
// whoever looks asks whether a read lock could be had.

// tryLock takes the write lock if it is free.
func tryLock(f *os.File) (bool, error) {
	err := control(f, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

// locked tells whether somebody holds the write lock.
func locked(f *os.File) (bool, error) {
	l := unix.Flock_t{Type: unix.F_RDLCK}
	if err := control(f, unix.F_OFD_GETLK, &l); err != nil {
		return false, err
	}
	return l.Type == unix.F_WRLCK, nil
}

// waitLock waits until nobody holds the write lock. f is open for reading.
func waitLock(f *os.File) error {
	for {
		err := control(f, unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_RDLCK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func control(f *os.File, cmd int, l *unix.Flock_t) error {
	return unix.FcntlFlock(f.Fd(), cmd, l)
}

// openLock opens a machine's lock to look at it.
func (s *Store) openLock(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(s.data, name, lockName), unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// alive tells whether a machine's process lives.
func (s *Store) alive(name string) bool {
	f, err := s.openLock(name)
	if err != nil {
		return false
	}
	defer f.Close()
	held, err := locked(f)
	return err == nil && held
}

// Wait waits until the machine's process has ended; it cannot be interrupted.
func (s *Store) Wait(name string) error {
	f, err := s.openLock(name)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil // removed: it has
		}
		return err
	}
	defer f.Close()
	return waitLock(f)
}

// Outcome waits until a machine has ended and tells how; also of one that is
// removed at its end, if the files could be had before.
func (s *Store) Outcome(name string) (View, error) {
	dir := filepath.Join(s.data, name)
	// Held open, the journal can be read when it has lost its name.
	j, err := os.Open(filepath.Join(dir, journalName))
	if err != nil {
		return View{}, err
	}
	defer j.Close()
	if err := s.Wait(name); err != nil {
		return View{}, err
	}
	m := &Machine{dir: dir}
	m.Spec.Name = name
	b, err := readOpen(j, maxJournal)
	if err != nil {
		return View{}, err
	}
	m.takeJournal(b)
	return m.View(m.Last.Time), nil
}
