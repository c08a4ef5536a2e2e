package machines

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// LogOptions say what of a log is wanted.
type LogOptions struct {
	Follow bool      // go on until the machine has ended
	Since  time.Time // what came before is left out
	Tail   int       // the last so many lines; negative: all
	Times  bool      // a time before each line
	Stream byte      // Console or Monitor
}

// Logs writes a machine's log to w.
func (s *Store) Logs(ctx context.Context, name string, o LogOptions, w io.Writer) error {
	m, err := s.Get(name)
	if err != nil {
		return err
	}
	var watch *watcher
	if o.Follow {
		// Before anything is read, so that nothing is missed in between.
		if watch, err = newWatcher(m.dir); err != nil {
			return err
		}
		defer watch.Close()
	}
	r, err := OpenReader(m.Console(), ConsoleSize)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNone, name)
	} else if err != nil {
		return err
	}
	defer r.Close()
	p := &printer{w: w, o: o, fresh: true}
	if o.Tail >= 0 {
		for _, e := range r.tail(o.Tail, p.wanted) {
			p.print(e)
		}
	}
	for {
		over := !o.Follow || !s.alive(name)
		for o.Follow || r.Bytes < ConsoleSize {
			e, ok := r.Next()
			if !ok || p.err != nil || ctx.Err() != nil {
				break
			}
			if p.wanted(e) {
				p.print(e)
			}
		}
		if r.Lost > 0 {
			p.note("some of the log was overwritten before it could be read")
			r.Lost = 0
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if over || p.err != nil {
			return p.err
		}
		died, err := watch.wait(ctx)
		if err != nil {
			return err
		}
		// A file's closing is told just before its lock goes; who only looked at
		// the lock to remove the machine closes it as well.
		for try := 0; died && try < goneTries && s.alive(name); try++ {
			time.Sleep(gonePause)
		}
	}
}

// How long a lock may take to go after its file's closing was told.
const (
	goneTries = 100
	gonePause = time.Millisecond
)

// tail reads what the log holds by now and keeps what the last n lines need: no more
// than the log's own size, whoever writes into it meanwhile.
func (r *Reader) tail(n int, wanted func(Entry) bool) []Entry {
	var kept []Entry
	lines := 0 // line feeds in kept
	for r.Bytes < 2*r.half {
		e, ok := r.Next()
		if !ok {
			break
		}
		if !wanted(e) {
			continue
		}
		e.Data = bytes.Clone(e.Data) // without its header
		kept = append(kept, e)
		lines += bytes.Count(e.Data, []byte{'\n'})
		// One more than n, as the last may end the last line.
		for len(kept) > 0 {
			first := bytes.Count(kept[0].Data, []byte{'\n'})
			if lines-first <= n {
				break
			}
			lines -= first
			kept = kept[1:]
		}
	}
	return lastLines(kept, n)
}

// lastLines cuts entries down to their last n lines.
func lastLines(es []Entry, n int) []Entry {
	if n == 0 {
		return nil
	}
	seen := 0
	for i := len(es) - 1; i >= 0; i-- {
		d := es[i].Data
		for at := len(d); at > 0; {
			nl := bytes.LastIndexByte(d[:at], '\n')
			if nl < 0 {
				break
			}
			// The newline at the very end ends the last line and begins none.
			if !(i == len(es)-1 && nl == len(d)-1) {
				if seen++; seen == n {
					out := append([]Entry(nil), es[i:]...)
					out[0].Data = d[nl+1:]
					return out
				}
			}
			at = nl
		}
	}
	return es
}

// printer writes entries.
type printer struct {
	w     io.Writer
	o     LogOptions
	fresh bool // a line begins
	err   error
}

func (p *printer) wanted(e Entry) bool {
	return e.Stream == p.o.Stream && !e.Time.Before(p.o.Since)
}

func (p *printer) print(e Entry) {
	if !p.o.Times {
		p.write(e.Data)
		return
	}
	for line := range bytes.Lines(e.Data) {
		if p.fresh {
			p.write(e.Time.UTC().AppendFormat(nil, "2006-01-02T15:04:05.000000Z "))
		}
		p.write(line)
		p.fresh = line[len(line)-1] == '\n'
	}
}

func (p *printer) note(text string) { p.write([]byte("\n[smolvmm: " + text + "]\n")) }

func (p *printer) write(b []byte) {
	if p.err == nil {
		_, p.err = p.w.Write(b)
	}
}

// watcher hears of changes in a machine's folder, by inotify(7).
type watcher struct{ f *os.File }

func newWatcher(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("logs -f: watching the log: %w (fs.inotify.max_user_instances may be too small)", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	for name, mask := range map[string]uint32{consoleName: unix.IN_MODIFY, lockName: unix.IN_CLOSE_WRITE} {
		if _, err := unix.InotifyAddWatch(fd, filepath.Join(dir, name), mask); err != nil {
			f.Close()
			return nil, fmt.Errorf("logs -f: watching %s: %w", name, err)
		}
	}
	return &watcher{f}, nil
}

// wait waits for something to happen. died says that the machine's process closed
// its lock.
func (w *watcher) wait(ctx context.Context) (died bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Now()) })
	defer stop()
	buf := make([]byte, 16<<10)
	n, err := w.f.Read(buf)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		return false, err
	}
	// struct inotify_event: wd, mask, cookie, len and the name
	for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
		if binary.NativeEndian.Uint32(b[4:])&(unix.IN_CLOSE_WRITE|unix.IN_IGNORED) != 0 {
			died = true
		}
		b = b[min(len(b), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:]))):]
	}
	return died, nil
}

func (w *watcher) Close() error { return w.f.Close() }
