// Package jail confines the calling process to what a running machine needs:
// no_new_privs, a Landlock domain in which no file can be reached by name, and
// a seccomp filter over every thread. It is put on after set-up, when every
// file, socket and KVM object is open, and before the first KVM_RUN: from then
// on the guest's bytes steer the process.
//
// It covers the whole process and cannot be taken off. A program that embeds
// vmm must not have it forced on itself, so nothing here is done unless the
// configuration asks; the smolvmm command does.
//
// Sources: seccomp(2), Documentation/userspace-api/seccomp_filter.rst and
// landlock.rst of Linux 6.18, and the runtime package of Go 1.26.
package jail

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Mode says what is done about a system call outside the tables.
type Mode int

const (
	// Off leaves the process as it is.
	Off Mode = iota
	// Enforce refuses: EPERM for most calls, death of the process (SIGSYS)
	// for those which no honest monitor makes: see Forbidden.
	Enforce
	// Log changes nothing but writes each such call to the kernel's log.
	// Landlock is left out, since it has no such mode.
	Log
	// Trap raises SIGSYS in the calling thread, so that the Go runtime
	// prints the stack of the call and ends the process with status 2.
	Trap
)

var modeNames = []string{Off: "off", Enforce: "enforce", Log: "log", Trap: "trap"}

// String is the word that ParseMode takes.
func (m Mode) String() string {
	if m < 0 || int(m) >= len(modeNames) {
		return fmt.Sprintf("mode %d", int(m))
	}
	return modeNames[m]
}

// ParseMode reads "off", "enforce", "log" or "trap".
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if s == name {
			return Mode(m), nil
		}
	}
	return Off, fmt.Errorf("jail mode %q: want off, enforce, log or trap", s)
}

// Config is one jail.
type Config struct {
	Mode Mode
	// Groups are the parts of the table to allow, as Strict composes them.
	// Runtime is always among them.
	Groups []Group
	// ExtraSyscalls are numbers allowed whatever their arguments, to try
	// what Log mode has shown to be missing. An entry replaces the table's.
	ExtraSyscalls []uint32
}

// applied is the one jail of the process: a second filter would be run on top
// of the first at each system call, and could allow nothing more.
var applied struct {
	sync.Mutex
	done bool
}

// Apply puts the jail on every thread of the process, those of today and those
// to come. There is no way back. When it fails the process may be partly
// confined: end it. It stops the world for the time of one system call on each
// thread, so no thread may have all signals blocked.
func Apply(c Config) error {
	if c.Mode == Off {
		return nil
	}
	if c.Mode < Off || int(c.Mode) >= len(modeNames) {
		return fmt.Errorf("jail: no such %v", c.Mode)
	}
	applied.Lock()
	defer applied.Unlock()
	if applied.done {
		return errors.New("jail: this process already has one, and it cannot be changed")
	}
	rules, err := compose(c, unix.Getpid())
	if err != nil {
		return err
	}
	prog, err := assemble(rules, c.Mode)
	if err != nil {
		return err
	}

	// The runtime makes its epoll instance and its wake-up eventfd with the
	// first timer or pollable file, and throws if it cannot.
	time.AfterFunc(time.Hour, func() {}).Stop()

	var ruleset landlock
	if c.Mode != Log {
		if ruleset, err = newLandlock(c.Groups); err != nil {
			return err
		}
		defer ruleset.close()
	}

	// The filter's installer needs no_new_privs on its own thread only: TSYNC
	// hands it to the others with the filter.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("jail: no_new_privs: %w", err)
	}
	applied.done = true
	if ruleset.beforeFilter() {
		if err := ruleset.restrict(); err != nil {
			return err
		}
		return install(prog)
	}
	if err := install(prog); err != nil {
		return err
	}
	return ruleset.restrict()
}
