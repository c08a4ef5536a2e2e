package build

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/sets"
)

// progress shows a build: line by line, and on a terminal with a last line that
// tells what is being done.
type progress struct {
	w     io.Writer
	width int  // of the terminal; 0: none
	quiet bool // only errors, which the command prints itself

	mu      sync.Mutex
	running map[int]*running
	order   []int
	drawn   bool
	status  string // of what is no step: downloads
	phases  map[string]sets.Progress
	stop    chan struct{}
	stopped sync.WaitGroup
}

// running is a step that has begun.
type running struct {
	title string
	start time.Time
	part  []byte // of a line of output that has not ended
}

// every is how often the last line is renewed.
const every = 200 * time.Millisecond

// maxLine bounds a line of a command's output, in bytes.
const maxLine = 4 << 10

func newProgress(o Options) (*progress, error) {
	p := &progress{w: o.Err, running: map[int]*running{}}
	switch o.Progress {
	case "", "auto":
		p.width = o.Terminal
	case "plain":
	case "quiet":
		p.quiet = true
	default:
		return nil, usagef("--progress %q: it must be auto, plain or quiet", o.Progress)
	}
	if p.width > 0 && !p.quiet {
		p.stop = make(chan struct{})
		p.stopped.Add(1)
		go p.tick()
	}
	return p, nil
}

func (p *progress) tick() {
	defer p.stopped.Done()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		case <-p.stop:
			return
		}
	}
}

func (p *progress) close() {
	if p.stop != nil {
		close(p.stop)
		p.stopped.Wait()
	}
	p.mu.Lock()
	p.erase()
	p.mu.Unlock()
}

// erase takes the last line away.
func (p *progress) erase() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

// draw renews the last line.
func (p *progress) draw() {
	if p.width <= 0 || p.quiet {
		return
	}
	text := p.status
	if text == "" && len(p.order) > 0 {
		r := p.running[p.order[len(p.order)-1]]
		text = fmt.Sprintf("%5.1fs %s", time.Since(r.start).Seconds(), r.title)
		if n := len(p.order); n > 1 {
			text += fmt.Sprintf(" (and %d more)", n-1)
		}
	}
	p.erase()
	if text != "" {
		fmt.Fprint(p.w, cut(text, p.width-1))
		p.drawn = true
	}
}

func cut(s string, width int) string {
	r := []rune(s)
	if len(r) > width && width > 1 {
		return string(r[:width-1]) + "…"
	}
	return s
}

// line prints one.
func (p *progress) line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.print(text)
}

func (p *progress) print(text string) {
	if p.quiet {
		return
	}
	p.erase()
	fmt.Fprintln(p.w, printable(text))
}

// set tells how far a set is: each phase in a line, on a terminal with a bar for
// each set that is under way.
func (p *progress) set(s sets.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phases == nil {
		p.phases = map[string]sets.Progress{}
	}
	old, known := p.phases[s.Set]
	p.phases[s.Set] = s
	if s.Phase == sets.Ready {
		delete(p.phases, s.Set)
		if known {
			p.print("set " + s.Set + " is ready")
		}
	} else if !known || old.Phase != s.Phase {
		p.print(fmt.Sprintf("set %s: %v", s.Set, s.Phase))
	}
	var bars []string
	for _, name := range slices.Sorted(maps.Keys(p.phases)) {
		bars = append(bars, bar(p.phases[name]))
	}
	p.status = strings.Join(bars, "  ")
}

// bar is one set's, as in "base [####....] 12/86 MiB".
func bar(s sets.Progress) string {
	const width = 10
	text := printable(s.Set)
	if s.Total > 0 {
		n := int(min(s.Got, s.Total) * width / s.Total)
		text += " [" + strings.Repeat("#", n) + strings.Repeat(".", width-n) + "]"
		return fmt.Sprintf("%s %d/%d MiB", text, s.Got>>20, s.Total>>20)
	}
	return fmt.Sprintf("%s %v", text, s.Phase)
}

// printable takes out what would steer a terminal: a command prints anything.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && unicode.IsControl(r) {
			return -1
		}
		return r
	}, s)
}

// event is builder.Options.Progress. It is called for one event at a time.
func (p *progress) event(ev builder.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	title := fmt.Sprintf("[%s %s] %s", ev.Stage, ev.Step, printable(firstLine(ev.Text)))
	switch ev.Kind {
	case builder.EventWarning:
		p.print("warning: " + ev.Text)
	case builder.EventStart:
		p.running[ev.ID] = &running{title: title, start: time.Now()}
		p.order = append(p.order, ev.ID)
		p.print(fmt.Sprintf("#%d %s", ev.ID, title))
		p.draw()
	case builder.EventOutput:
		p.output(ev)
	default:
		r := p.running[ev.ID]
		if r != nil && len(r.part) > 0 {
			p.print(fmt.Sprintf("#%d %.1f %s", ev.ID, time.Since(r.start).Seconds(), r.part))
		}
		delete(p.running, ev.ID)
		for i, id := range p.order {
			if id == ev.ID {
				p.order = append(p.order[:i], p.order[i+1:]...)
				break
			}
		}
		switch ev.Kind {
		case builder.EventCached:
			p.print(fmt.Sprintf("#%d CACHED", ev.ID))
		case builder.EventDone:
			p.print(fmt.Sprintf("#%d DONE %.1fs", ev.ID, ev.Took.Seconds()))
		case builder.EventFailed:
			p.print(fmt.Sprintf("#%d FAILED: %v", ev.ID, ev.Err))
		}
	}
}

// output prints whole lines.
func (p *progress) output(ev builder.Event) {
	r := p.running[ev.ID]
	if r == nil {
		return
	}
	for _, c := range ev.Data {
		if c != '\n' {
			if len(r.part) < maxLine {
				r.part = append(r.part, c)
			}
			continue
		}
		p.print(fmt.Sprintf("#%d %.1f %s", ev.ID, time.Since(r.start).Seconds(), r.part))
		r.part = r.part[:0]
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
