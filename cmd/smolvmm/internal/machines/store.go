// Package machines keeps what is known of named machines in the user's folders:
// who has a name, whether its process lives, what its guest has printed, how it
// ended. There is no daemon: each machine is a process that holds a lock, and
// whoever wants to know looks at the files.
//
// A machine has the folder machines/NAME below the data folder, with
//
//	lock          held by the machine's process for its life (fcntl(2), OFD locks)
//	machine.json  what the machine is: Spec
//	journal       what became of it: a Record a line
//	console.log   what the guest printed: a Ring
//
// and the folder machines/NAME below the runtime folder, with its sockets.
package machines

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names of files in a machine's folders.
const (
	lockName    = "lock"
	specName    = "machine.json"
	journalName = "journal"
	consoleName = "console.log"
	socketName  = "api.sock"
)

// Bounds of what is read from a machine's folder, in bytes: its process writes
// there, and might be the guest's by then.
const (
	maxSpec    = 1 << 20
	maxJournal = 64 << 10
)

// maxName is the longest host name, a DNS label (RFC 1035 §2.3.4).
const maxName = 63

// ErrName: a machine cannot have that name.
var ErrName = errors.New("is no machine's name")

// CheckName says whether a machine may have this name: it is a folder's, a host's
// and a DNS label.
func CheckName(s string) error {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
	if s == "" || len(s) > maxName || strings.Trim(s, letters) != "" || s[0] == '-' || s[len(s)-1] == '-' {
		return fmt.Errorf("%.80q %w: 1 to %d lower-case letters, digits and dashes, no dash at either end", s, ErrName, maxName)
	}
	return nil
}

// Store is where a user's machines are. Its folders are there.
type Store struct {
	data, run string // …/machines, absolute
	audit     string // the default audit log
}

// Spec is what a machine was asked to be. Values of variables and secrets are no
// part of it.
type Spec struct {
	Name    string    `json:"name"`
	Image   string    `json:"image,omitempty"` // as the user called it
	Kernel  string    `json:"kernel"`
	Append  string    `json:"append,omitempty"` // kernel arguments
	Disks   []string  `json:"disks,omitempty"`  // as -disk has them
	Memory  uint64    `json:"memory_bytes"`
	CPUs    int       `json:"cpus"`
	Ports   []string  `json:"publish,omitempty"` // as -p has them
	Env     []string  `json:"env,omitempty"`     // names
	Secrets []string  `json:"secrets,omitempty"` // names
	Command []string  `json:"command,omitempty"`
	Ready   string    `json:"ready,omitempty"`  // as --ready has it
	Remove  bool      `json:"remove,omitempty"` // --rm
	Detach  bool      `json:"detached,omitempty"`
	Created time.Time `json:"created"`
	// PID is the machine's process. It is written here, which that process cannot
	// reach once its guest runs, and is not taken from the journal, which it can: a
	// guest that has it could have any other process of the user's killed for it.
	PID int `json:"pid"`
	// Socket is the API's, Sockets are those of published ports: what a killed
	// process leaves behind.
	Socket  string   `json:"socket"`
	Sockets []string `json:"published_sockets,omitempty"`
	Audit   string   `json:"audit,omitempty"`
}

// Claim is a machine of this process's: while it is held nobody else can have
// the name.
type Claim struct {
	Spec    Spec
	Console *Ring

	store   *Store
	dir     string
	lock    *os.File
	journal *os.File
}

// InUseError is a name that a machine has.
type InUseError struct {
	Name    string
	Running bool
}

func (e *InUseError) Error() string {
	if e.Running {
		return fmt.Sprintf("machine %s is running: choose another --name, or end it with smolvmm stop %s", e.Name, e.Name)
	}
	return fmt.Sprintf("a machine %s is there and has ended: smolvmm rm %s removes it", e.Name, e.Name)
}

// ErrNone is a machine that there is not.
var ErrNone = errors.New("no such machine")

// Create claims a name for this process and makes the machine's folders. The
// folder appears under its name complete and locked, or not at all; of two that
// want one name, one gets an *InUseError.
func (s *Store) Create(spec Spec) (_ *Claim, err error) {
	if err := CheckName(spec.Name); err != nil {
		return nil, err
	}
	if err := s.vacate(spec.Name); err != nil {
		return nil, err
	}
	spec.Socket = filepath.Join(s.run, spec.Name, socketName)
	spec.PID = os.Getpid()
	fresh := filepath.Join(s.data, newPrefix+random())
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return nil, fmt.Errorf("a folder for the machine: %w", err)
	}
	c := &Claim{Spec: spec, store: s, dir: filepath.Join(s.data, spec.Name)}
	defer func() {
		if err != nil {
			c.closeFiles()
			_ = os.RemoveAll(fresh)
		}
	}()
	const anew = os.O_CREATE | os.O_EXCL
	if c.lock, err = os.OpenFile(filepath.Join(fresh, lockName), os.O_RDWR|anew, 0o600); err != nil {
		return nil, err
	}
	if ok, err := tryLock(c.lock); err != nil || !ok {
		return nil, fmt.Errorf("%s: cannot be locked: %w", s.data, err)
	}
	if c.journal, err = os.OpenFile(filepath.Join(fresh, journalName), os.O_WRONLY|os.O_APPEND|anew, 0o600); err != nil {
		return nil, err
	}
	console, err := os.OpenFile(filepath.Join(fresh, consoleName), os.O_RDWR|anew, 0o600)
	if err != nil {
		return nil, err
	}
	c.Console = NewRing(console, ConsoleSize)
	if err := c.writeSpec(fresh); err != nil {
		return nil, err
	}
	if err := c.Note(Record{State: Starting}); err != nil {
		return nil, err
	}
	err = unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, c.dir, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, &InUseError{spec.Name, s.alive(spec.Name)}
	case err != nil:
		return nil, fmt.Errorf("a folder for the machine: %w", err)
	}
	if err := ownFolder(filepath.Join(s.run, spec.Name)); err != nil {
		_ = c.discard()
		return nil, err
	}
	return c, nil
}

// vacate makes a name free where its machine has ended and was to be removed
// then, and tells who has it otherwise.
func (s *Store) vacate(name string) error {
	m, err := s.Get(name)
	switch {
	case errors.Is(err, ErrNone):
		return nil
	case err != nil:
		return err
	case m.Alive:
		return &InUseError{name, true}
	case !m.Spec.Remove:
		return &InUseError{name, false}
	}
	var running *RunningError
	switch err := s.Remove(name); {
	case errors.Is(err, ErrNone):
		return nil // somebody was faster, and the name is to be had
	case errors.As(err, &running):
		return &InUseError{name, true}
	default:
		return err
	}
}

// Prefixes of folders on their way in and out; no machine's name has a dot.
const (
	newPrefix = ".new-"
	oldPrefix = ".old-"
)

func random() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (c *Claim) writeSpec(dir string) error {
	b, err := json.MarshalIndent(c.Spec, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, specName)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Update writes the spec anew. Call it before the process is confined.
func (c *Claim) Update() error { return c.writeSpec(c.dir) }

// Dir is the machine's data folder, RunDir its folder of sockets.
func (c *Claim) Dir() string    { return c.dir }
func (c *Claim) RunDir() string { return filepath.Dir(c.Spec.Socket) }

// ConsolePath is the file of the console's log.
func (c *Claim) ConsolePath() string { return filepath.Join(c.dir, consoleName) }

// Store is where the claim is.
func (c *Claim) Store() *Store { return c.store }

// Release lets go of the name's lock and closes the files: the machine has ended.
// It needs no more than a confined process may do.
func (c *Claim) Release() { c.closeFiles() }

func (c *Claim) closeFiles() {
	if c.Console != nil {
		_ = c.Console.Close()
	}
	if c.journal != nil {
		c.journal.Close()
	}
	if c.lock != nil {
		c.lock.Close() // last: who waits for it finds the rest written
	}
}

// Discard takes everything back: the machine never ran.
func (c *Claim) Discard() error { return c.discard() }

func (c *Claim) discard() error {
	c.closeFiles()
	if err := c.store.Remove(c.Spec.Name); !errors.Is(err, ErrNone) {
		return err
	}
	return nil
}

// Machine is what the files tell of one.
type Machine struct {
	Spec  Spec
	Alive bool // its process holds the lock
	// Last is the last record of the journal, PID the process's, Started when the
	// guest began to run, Ready whether it said so.
	Last    Record
	PID     int
	Started time.Time
	Ready   bool
	Addrs   []string // published ports as they were opened

	dir string
}

// Console is the path of what the guest printed.
func (m *Machine) Console() string { return filepath.Join(m.dir, consoleName) }

// Get reads what is known of a machine; ErrNone where there is none.
func (s *Store) Get(name string) (*Machine, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	m := &Machine{dir: filepath.Join(s.data, name)}
	if st, err := os.Lstat(m.dir); errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return nil, fmt.Errorf("%w: %s", ErrNone, name)
	} else if err != nil {
		return nil, err
	}
	m.Spec.Name = name
	// Whether it lives comes first: what it wrote last is then in the files.
	m.Alive = s.alive(name)
	if b, err := readBounded(filepath.Join(m.dir, specName), maxSpec); err == nil {
		// A spec that cannot be read is that of a machine that is broken, not one
		// that is not there: it can still be removed.
		_ = json.Unmarshal(b, &m.Spec)
	}
	m.Spec.Name, m.PID = name, m.Spec.PID
	m.readJournal()
	return m, nil
}

// List gives all machines, by name.
func (s *Store) List() (out []*Machine, err error) {
	entries, err := os.ReadDir(s.data)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.IsDir() || CheckName(e.Name()) != nil {
			continue
		}
		m, err := s.Get(e.Name())
		if errors.Is(err, ErrNone) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// readBounded reads a regular file of at most limit bytes, and follows no link.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readOpen(f, limit)
}

func readOpen(f *os.File, limit int64) ([]byte, error) {
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular() || st.Size() > limit:
		return nil, fmt.Errorf("%s: not a file of at most %d bytes", f.Name(), limit)
	}
	b := make([]byte, st.Size())
	n, err := f.ReadAt(b, 0)
	if n == len(b) {
		err = nil
	}
	return b[:n], err
}
