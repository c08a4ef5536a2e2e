package runvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/smolvmm/smolvmm/builder/archive"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/runvm/steplog"
	"github.com/smolvmm/smolvmm/builder/tree"
	"github.com/smolvmm/smolvmm/vmm"
)

// machine is one step's.
type machine struct {
	cfg    vmm.Config
	log    *os.File
	output io.Writer // of the command; may be nil
	most   int64     // bytes of output that are given on
}

// said is what a machine told of its step.
type said struct {
	result  steplog.Result
	gone    []byte          // names, a NUL behind each
	changes *steplog.Reader // stands at the first frame of the archive; nil: there is none
	console string
	full    bool // the kernel found the root full
}

// maxGone bounds the list of what a step removed, in bytes: a million names.
const maxGone = 64 << 20

// run boots the machine and follows its log to the end. The items, which may be
// secrets, are wiped then, whatever became of the step.
func (m *machine) run(ctx context.Context) (*said, error) {
	defer wipe(m.cfg.Items)
	con := &console{}
	marked := make(chan struct{}, 1)
	m.cfg.ConsoleOut = con
	m.cfg.Marked = func(byte) {
		select {
		case marked <- struct{}{}:
		default: // it will look anyway
		}
	}
	vm, err := vmm.New(m.cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	f := &follower{r: steplog.NewReader(m.log), output: m.output, left: m.most}
	followed := make(chan error, 1)
	go func() {
		err := f.follow(marked, ended)
		if err != nil {
			cancel(err) // nobody takes what the machine says
		}
		followed <- err
	}()
	exit, err := vm.Run(ctx)
	close(ended)
	ferr := <-followed
	if err := errors.Join(err, vm.Close()); err != nil {
		return nil, err
	}
	if ferr != nil {
		return nil, ferr
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	text, full := con.end()
	if !f.reported {
		what := exit.String()
		if exit.End == vmm.EndExit && f.incomplete != nil {
			what += ", and its log ends early: " + f.incomplete.Error()
		}
		return nil, &MachineError{"the step's machine ended without a report: " + what, text}
	}
	f.said.console, f.said.full = text, full
	return &f.said, nil
}

// follower reads the log behind the guest.
type follower struct {
	r      *steplog.Reader
	output io.Writer
	left   int64 // bytes of output that are given on: smolinit keeps to it, another init may not
	said
	reported   bool
	incomplete error // why there is no further frame
}

// follow reads frames whenever the guest has marked one, and all that are left when
// the machine has ended. The error is the host's.
func (f *follower) follow(marked, ended <-chan struct{}) error {
	for {
		if err := f.drain(); err != nil || f.reported {
			return err
		}
		select {
		case <-marked:
		case <-ended:
			return f.drain()
		}
	}
}

// drain reads the frames that are there.
func (f *follower) drain() error {
	for !f.reported {
		at := *f.r
		t, p, err := f.r.Next()
		if errors.Is(err, steplog.ErrNotYet) {
			f.incomplete = err
			return nil
		}
		if err != nil {
			return fmt.Errorf("the step's log: %w", err)
		}
		switch t {
		case steplog.Output:
			if p = p[:min(int64(len(p)), f.left)]; f.output == nil || len(p) == 0 {
				continue
			}
			f.left -= int64(len(p))
			if _, err := f.output.Write(p); err != nil {
				return fmt.Errorf("the step's output: %w", err)
			}
		case steplog.Gone:
			if len(f.gone)+len(p) > maxGone {
				return &MachineError{fmt.Sprintf("the step's machine tells of more than %d bytes of names that are gone", maxGone), ""}
			}
			f.gone = append(f.gone, p...)
		case steplog.Changes:
			if f.changes == nil {
				f.changes = at.Fork()
			}
		case steplog.Report:
			if err := json.Unmarshal(p, &f.result); err != nil {
				return &MachineError{"the step's machine sent a report that cannot be read: " + printable(err.Error()), ""}
			}
			f.reported = true
		}
	}
	return nil
}

// apply does to the tree what the step did to its root.
func (s *said) apply(ctx context.Context, t *tree.Tree, blobs *blob.Store) error {
	for name := range bytes.SplitSeq(bytes.TrimSuffix(s.gone, []byte{0}), []byte{0}) {
		if len(name) == 0 {
			continue
		}
		// What smolinit had put in for the step is not in the tree.
		if err := t.Remove(string(name)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, tree.ErrNotDir) {
			return &MachineError{"the step's machine tells of what cannot be gone: " + printable(err.Error()), s.console}
		}
	}
	if s.changes == nil {
		return nil
	}
	err := archive.Read(ctx, &changes{r: s.changes}, t, archive.Options{Name: "the step's changes", Blobs: blobs})
	if err != nil {
		return err
	}
	return nil
}

// changes is the archive in a log.
type changes struct {
	r *steplog.Reader
	p []byte
}

func (c *changes) Read(b []byte) (int, error) {
	for len(c.p) == 0 {
		t, p, err := c.r.Next()
		switch {
		case errors.Is(err, steplog.ErrNotYet), err == nil && t == steplog.Report:
			return 0, io.EOF
		case err != nil:
			return 0, err
		case t == steplog.Changes:
			c.p = p
		}
	}
	n := copy(b, c.p)
	c.p = c.p[n:]
	return n, nil
}

// maxConsole bounds what is kept of a step's console, in bytes.
const maxConsole = 16 << 10

// console keeps the end of what the kernel says and looks for what a step has to
// know.
type console struct {
	mu   sync.Mutex
	tail []byte
	line []byte
	full bool
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail = append(c.tail, p...)
	if n := len(c.tail) - maxConsole; n > maxConsole {
		c.tail = append(c.tail[:0], c.tail[n:]...)
	}
	for _, b := range p {
		switch {
		case b == '\n':
			c.look()
		case len(c.line) < 512:
			c.line = append(c.line, b)
		}
	}
	return len(p), nil
}

// look reads a line of the kernel's: sys/ufs/ffs/ffs_alloc.c, ffs_fserr.
func (c *console) look() {
	l := string(c.line)
	c.line = c.line[:0]
	if strings.Contains(l, ", on /: file system full") || strings.Contains(l, ", on /: out of inodes") ||
		strings.Contains(l, "/: write failed, file system is full") {
		c.full = true
	}
}

// end gives the last of the console as printable lines.
func (c *console) end() (text string, full bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	var b strings.Builder
	for l := range strings.Lines(string(c.tail[max(0, len(c.tail)-maxConsole):])) {
		if l = printable(l); l != "" {
			b.WriteString(l + "\n")
		}
	}
	return b.String(), c.full
}
