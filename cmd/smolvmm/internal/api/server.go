package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smolvmm/smolvmm/vmm/client"
)

// Config is what a server is made of.
type Config struct {
	Host Host
	// ID names the machine, Image what it is made from, in the user's words.
	ID, Image string
	Version   string // of smolvmm
	// Booted: the process boots the machine that Spec describes by itself, and
	// whatever would configure it is refused.
	Booted bool
	Spec   Spec
	// ConsolePath is the file that the console is kept in, if any, and Console
	// reads it.
	ConsolePath string
	Console     Console
	// Agent is the way to the guest's agent; nil until there is one.
	Agent Agent
	// Log is what PUT /logger sets up; nil refuses it. Logger takes what the
	// server has to say; nil is silence.
	Log    *Log
	Logger *slog.Logger
}

// DefaultID is a machine's that was given none, as Firecracker has it.
const DefaultID = "anonymous-instance"

// CheckID refuses an ID that Firecracker would refuse too.
func CheckID(id string) error {
	if id == "" || len(id) > maxID || strings.ContainsFunc(id, func(r rune) bool {
		return !(r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}) {
		return fmt.Errorf("must be 1 to %d letters, digits and hyphens", maxID)
	}
	return nil
}

// Server answers for one machine.
type Server struct {
	cfg     Config
	log     *slog.Logger
	routes  []route
	http    *http.Server
	proc    *process
	created time.Time
	events  *eventLog
	cancel  context.CancelFunc // ends what outlives a request
	ctx     context.Context
	tasks   sync.WaitGroup // goroutines of the server's
	calls   sync.WaitGroup // answers under way
	closing chan struct{}  // closed by Close: streams end

	counters struct {
		requests, refused, strangers, crowded, slow atomic.Uint64
	}

	op sync.Mutex // held while the machine is started, paused or resumed

	mu       sync.Mutex // guards what follows
	state    client.State
	starting bool
	spec     Spec
	started  time.Time
	exit     *client.Exit
	stopping *time.Timer
	closed   bool
	sink     *sink // of PUT /metrics
}

// New makes a server. It opens what it will read of the process, and nothing
// afterwards but the files that PUT /logger and PUT /metrics name.
func New(cfg Config) (*Server, error) {
	if cfg.ID == "" {
		cfg.ID = DefaultID
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, routes: routes(), created: time.Now(), events: newEventLog(),
		state: client.NotStarted, spec: cfg.Spec, closing: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.proc, err = openProcess(); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http = s.newHTTP(s)
	s.starting = cfg.Booted
	s.events.add(client.Event{Event: client.EventCreated})
	return s, nil
}

// newHTTP is an HTTP/1.1 server with this package's patience.
func (s *Server) newHTTP(h http.Handler) *http.Server {
	var only http.Protocols
	only.SetHTTP1(true)
	return &http.Server{
		Handler: h, Protocols: &only, DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := c.(*peerConn); ok {
				return context.WithValue(ctx, peerKey{}, p.peer)
			}
			return ctx
		},
	}
}

// Serve answers whoever this process's own user, or root, connects with, on a
// goroutine of its own, until Close.
func (s *Server) Serve(l *net.UnixListener) {
	g := &guarded{UnixListener: l, s: s, uid: ownUID(), slots: make(chan struct{}, maxConns)}
	s.tasks.Go(func() {
		if err := s.http.Serve(g); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			s.log.Error("api: the socket is not served any more", "err", err)
		}
	})
}

// SetAgent says how the guest's agent is reached.
func (s *Server) SetAgent(a Agent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.Agent = a
}

// Started says that the guest runs.
func (s *Server) Started() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == client.NotStarted {
		s.state, s.started, s.starting = client.Running, time.Now(), false
		s.events.add(client.Event{Event: client.EventStarted})
	}
}

// Ended says how the guest ended. Close should follow.
func (s *Server) Ended(e client.Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exit != nil {
		return
	}
	s.state, s.exit = client.Ended, &e
	if s.stopping != nil {
		s.stopping.Stop()
	}
	s.events.add(client.Event{Event: client.EventEnded, Text: e.How, Exit: &e})
}

// lastWords is how long Close waits for those who are being answered to take it.
const lastWords = time.Second

// Close ends the server, and everything that it began. Who reads events or
// waits for an answer gets what there is to say first.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	if s.stopping != nil {
		s.stopping.Stop()
	}
	s.mu.Unlock()
	close(s.closing)
	answered := make(chan struct{})
	go func() {
		s.calls.Wait()
		close(answered)
	}()
	patience := time.NewTimer(lastWords)
	defer patience.Stop()
	select {
	case <-answered:
	case <-patience.C:
	}
	// Not Shutdown, which would wait for whoever has connected and says nothing.
	err := s.http.Close()
	s.cancel()
	<-answered
	s.tasks.Wait()
	_ = s.flushMetrics(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sink != nil {
		s.sink.close()
	}
	if s.cfg.Log != nil {
		s.cfg.Log.close()
	}
	s.proc.close()
	return err
}

// enter counts a request in, unless the server is closing. Who is in calls
// calls.Done.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.calls.Add(1)
	return true
}

// Words that both monitors have for a request at the wrong time.
const (
	tooLate  = "The requested operation is not supported after starting the microVM."
	tooEarly = "The requested operation is not supported before starting the microVM."
)

// configure changes the description of a machine that is not there yet.
func (s *Server) configure(change func(*Spec) error) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.starting || s.state != client.NotStarted {
		return nil, badf(tooLate)
	}
	return nil, change(&s.spec)
}

// machine gives the state of a machine that runs or is paused.
func (s *Server) machine() (client.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state == client.NotStarted:
		return s.state, badf(tooEarly)
	case s.state == client.Ended:
		return s.state, &statusError{http.StatusGone, errors.New("the machine has ended")}
	}
	return s.state, nil
}

// start is InstanceStart.
func (s *Server) start() (any, error) {
	s.op.Lock()
	defer s.op.Unlock()
	s.mu.Lock()
	if s.starting || s.state != client.NotStarted {
		s.mu.Unlock()
		return nil, badf(tooLate)
	}
	if s.spec.Boot.Kernel == "" {
		s.mu.Unlock()
		return nil, badf("Cannot start microvm without kernel configuration: PUT /boot-source first.")
	}
	spec := s.spec
	s.starting = true
	s.mu.Unlock()
	err := s.cfg.Host.Start(spec)
	if err == nil {
		s.Started()
		return nil, nil
	}
	s.mu.Lock()
	s.starting = false
	s.mu.Unlock()
	return nil, badf("The machine was not started: %w", err)
}

// setState is PATCH /vm.
func (s *Server) setState(want client.State) (any, error) {
	s.op.Lock()
	defer s.op.Unlock()
	now, err := s.machine()
	if err != nil || now == want {
		return nil, err
	}
	do, event := s.cfg.Host.Pause, client.EventPaused
	if want == client.Running {
		do, event = s.cfg.Host.Resume, client.EventResumed
	}
	if err := do(); err != nil {
		return nil, badf("%w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != client.Ended {
		s.state = want
		s.events.add(client.Event{Event: event})
	}
	return nil, nil
}
