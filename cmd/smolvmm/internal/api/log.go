package api

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
)

// Log is a handler of log/slog whose target and level can be changed while
// others write: PUT /logger does.
type Log struct {
	level  slog.LevelVar
	target atomic.Pointer[target]

	mu  sync.Mutex // guards cfg and own
	cfg *loggerConfig
	own *sink // what PUT /logger opened
}

// target is where lines go, and how.
type target struct{ slog.Handler }

// Formats of a log.
const (
	Text = "text"
	JSON = "json"
)

// NewLog makes one that writes lines of the format to w from the level on. Times
// are left out of lines of text unless times is set: they go to a person who is
// looking; others are in UTC, as a confined process cannot read the time zone.
func NewLog(w io.Writer, format string, level slog.Level, times bool) (*Log, error) {
	l := &Log{}
	l.level.Set(level)
	h, err := newHandler(w, format, times || format == JSON, true, false)
	if err != nil {
		return nil, err
	}
	l.target.Store(&target{h})
	return l, nil
}

func newHandler(w io.Writer, format string, times, levels, origin bool) (slog.Handler, error) {
	o := &slog.HandlerOptions{Level: slog.LevelDebug - 4, AddSource: origin, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) > 0:
		case a.Key == slog.TimeKey && !times, a.Key == slog.LevelKey && !levels:
			return slog.Attr{}
		case a.Key == slog.TimeKey:
			return slog.Time(slog.TimeKey, a.Value.Time().UTC())
		}
		return a
	}}
	switch format {
	case Text:
		return slog.NewTextHandler(w, o), nil
	case JSON:
		return slog.NewJSONHandler(w, o), nil
	}
	return nil, fmt.Errorf("%q: must be text or json", format)
}

// Logger gives a logger that follows the changes.
func (l *Log) Logger() *slog.Logger { return slog.New(follower{log: l}) }

// follower is a handler that asks the Log at each line.
type follower struct {
	log  *Log
	wrap func(slog.Handler) slog.Handler // nil: none
}

func (f follower) Enabled(_ context.Context, level slog.Level) bool {
	return level >= f.log.level.Level()
}

func (f follower) Handle(ctx context.Context, r slog.Record) error {
	var h slog.Handler = f.log.target.Load().Handler
	if f.wrap != nil {
		h = f.wrap(h)
	}
	return h.Handle(ctx, r)
}

func (f follower) and(next func(slog.Handler) slog.Handler) slog.Handler {
	before := f.wrap
	return follower{f.log, func(h slog.Handler) slog.Handler {
		if before != nil {
			h = before(h)
		}
		return next(h)
	}}
}

func (f follower) WithAttrs(as []slog.Attr) slog.Handler {
	return f.and(func(h slog.Handler) slog.Handler { return h.WithAttrs(as) })
}

func (f follower) WithGroup(name string) slog.Handler {
	return f.and(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

// levels are Firecracker's; Off is above everything.
func levelOf(name string) (slog.Level, error) {
	switch strings.ToLower(name) {
	case "error":
		return slog.LevelError, nil
	case "warning", "warn":
		return slog.LevelWarn, nil
	case "info", "":
		return slog.LevelInfo, nil
	case "debug":
		return slog.LevelDebug, nil
	case "trace":
		return slog.LevelDebug - 4, nil
	case "off":
		return slog.LevelError + 100, nil
	}
	return 0, badf("unknown variant `%.32s`, expected one of `Error`, `Warning`, `Info`, `Debug`, `Trace`, `Off`.", name)
}

// set follows a configuration. The target stays where no path is given.
func (l *Log) set(c loggerConfig) error {
	level, err := levelOf(c.Level)
	if err != nil {
		return err
	}
	if c.Module != "" {
		return badf("module: smolvmm's log is not divided into modules.")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.Path != "" {
		out, err := openSink(c.Path)
		if err != nil {
			return err
		}
		h, err := newHandler(out, Text, true, c.ShowLevel, c.ShowOrigin)
		if err != nil {
			out.close()
			return err
		}
		// Who has the old target in his hands may still write to it.
		old := l.own
		l.own = out
		l.target.Store(&target{h})
		if old != nil {
			old.close()
		}
	}
	l.level.Set(level)
	l.cfg = &c
	return nil
}

func (l *Log) configured() (loggerConfig, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cfg == nil {
		return loggerConfig{}, false
	}
	return *l.cfg, true
}

func (l *Log) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own != nil {
		l.target.Store(&target{slog.DiscardHandler})
		l.own.close()
		l.own = nil
	}
}

func (s *Server) putLogger(c *call) (any, error) {
	var l loggerConfig
	if err := c.need(&l); err != nil {
		return nil, err
	}
	return s.configure(func(*Spec) error {
		if s.cfg.Log == nil {
			return badf("The log of this machine is its process's own.")
		}
		return s.cfg.Log.set(l)
	})
}
