package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
)

// The keeper is a second process, this program again, that waits for the
// monitor to end and then does what the monitor may not have been able to: put
// the terminal back after a panic, SIGKILL or a death by the jail, and remove
// the sockets of the console and of published ports, which a jailed process may
// not do. It exists only with a console on a terminal, with a socket, or for a
// machine that is to be removed at its end.

// KeeperName is its argv[0].
const KeeperName = "smolvmm-keeper"

// KeeperJob is what it has to do when its standard input ends.
type KeeperJob struct {
	// Raw is how the monitor set the terminal, the keeper's standard error,
	// and Cooked how it found it. Somebody else's settings are left alone.
	Raw, Cooked *unix.Termios `json:",omitempty"`
	// Sockets are to be removed, those that are still the same.
	Sockets []SocketFile `json:",omitempty"`
	// Machine is to be removed.
	Machine *KeptMachine `json:",omitempty"`
}

// KeptMachine is a machine, and where it is looked for: the keeper has no
// environment.
type KeptMachine struct {
	Name, Data, Runtime string
}

// SocketFile is a Unix socket in the file system: its path, which startKeeper
// makes absolute, and its inode number then.
type SocketFile struct {
	Path  string
	Inode uint64
}

// none: there is nothing to do.
func (j KeeperJob) none() bool {
	return j.Raw == nil && j.Cooked == nil && len(j.Sockets) == 0 && j.Machine == nil
}

// keeper is the monitor's end of it.
type keeper struct {
	alive *os.File // the keeper reads its end of file here
	done  *os.File // and closes this when its work is done
}

// StartKeeper starts the process. tty is the terminal to put back, or nil.
func StartKeeper(job KeeperJob, tty *os.File) (*keeper, error) {
	job.Sockets = slices.Clone(job.Sockets)
	for i := range job.Sockets {
		f := &job.Sockets[i]
		abs, err := filepath.Abs(f.Path)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Lstat(abs, &st); err != nil {
			return nil, err
		}
		f.Path, f.Inode = abs, st.Ino
	}
	task, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	in, alive, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	done, out, err := os.Pipe()
	if err != nil {
		alive.Close()
		return nil, err
	}
	defer out.Close()
	k := &keeper{alive, done}
	// No environment: it may hold a secret. No folder: it may be unmounted.
	p, err := os.StartProcess("/proc/self/exe", []string{KeeperName}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: []*os.File{in, out, tty},
	})
	if err != nil {
		k.drop()
		return nil, fmt.Errorf("keeper of the terminal: %w", err)
	}
	_ = p.Release()
	if _, err := alive.Write(append(task, '\n')); err != nil {
		k.drop()
		return nil, fmt.Errorf("keeper of the terminal: %w", err)
	}
	return k, nil
}

func (k *keeper) drop() {
	k.alive.Close()
	k.done.Close()
}

// keeperPatience is how long an ending monitor waits for its keeper.
const keeperPatience = time.Second

// Release lets the keeper do its work and waits for it.
func (k *keeper) Release() {
	if k == nil {
		return
	}
	k.alive.Close()
	_ = k.done.SetReadDeadline(time.Now().Add(keeperPatience))
	_, _ = k.done.Read(make([]byte, 1))
	k.done.Close()
}

// keeperMain is the other process.
func keeperMain() {
	// What ends the monitor's process group must leave its keeper alive, and a
	// terminal that has a new foreground must not stop it.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE,
		syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	CloseInherited() // what our caller gave the monitor is not ours to hold
	var job KeeperJob
	d := json.NewDecoder(os.Stdin)
	if d.Decode(&job) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	job.do(int(os.Stderr.Fd()))
}

func (j KeeperJob) do(tty int) {
	if j.Raw != nil && j.Cooked != nil {
		if now, err := unix.IoctlGetTermios(tty, unix.TCGETS); err == nil && *now == *j.Raw {
			_ = unix.IoctlSetTermios(tty, unix.TCSETS, j.Cooked)
		}
	}
	for _, f := range j.Sockets {
		var st unix.Stat_t
		if unix.Lstat(f.Path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK && st.Ino == f.Inode {
			_ = unix.Unlink(f.Path)
		}
	}
	if m := j.Machine; m != nil {
		s := machines.At(m.Data, m.Runtime)
		_ = s.Wait(m.Name) // the monitor's descriptors go one after the other
		_ = s.Remove(m.Name)
	}
}
