package api

import (
	_ "embed"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/client"
)

//go:embed openapi.json
var openAPIFile string

func (s *Server) openAPI(*call) (any, error) {
	return rawText{"application/json", []byte(openAPIFile)}, nil
}

func (s *Server) info(*call) (any, error) {
	u := s.proc.read()
	ports, _ := s.portList()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.spec.Machine.Whole()
	out := client.Info{
		Name: s.cfg.ID, Image: s.cfg.Image, State: s.state, PID: os.Getpid(), Version: s.cfg.Version, Console: s.cfg.ConsolePath,
		Created: s.created.UTC(), Started: s.started.UTC(), CPUs: *m.CPUs,
		CPUTimeMS: u.cpu.Milliseconds(), GuestTimeMS: u.guest.Milliseconds(),
		Memory: client.Memory{Guest: *m.MemoryMiB << 20, Resident: u.resident, GuestResident: u.shared},
		Ports:  ports, Exit: s.exit,
	}
	if !s.started.IsZero() {
		out.UptimeMS = time.Since(s.started).Milliseconds()
	} else {
		out.Started = time.Time{}
	}
	return out, nil
}

// portList gives what is published: nothing before the start, as it is opened
// with the machine.
func (s *Server) portList() ([]client.Port, error) {
	if _, err := s.machine(); err != nil {
		return []client.Port{}, err
	}
	return append([]client.Port{}, s.cfg.Host.Ports()...), nil
}

func (s *Server) ports(*call) (any, error) { return s.portList() }

func (s *Server) egress(*call) (any, error) {
	if _, err := s.machine(); err != nil {
		return nil, err
	}
	return client.Egress{Interfaces: append([]map[string]uint64{}, s.cfg.Host.Egress()...)}, nil
}

// maxFlows bounds an answer: more than one interface has open at once by default.
const maxFlows = 4096

func (s *Server) flows(c *call) (any, error) {
	n, err := c.number("max", maxFlows)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		n = maxFlows
	}
	if _, err := s.machine(); err != nil {
		return nil, err
	}
	return append([]client.Flow{}, s.cfg.Host.Flows(int(n))...), nil
}

func (s *Server) getBootOptions(*call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spec.Options, nil
}

func (s *Server) putBootOptions(c *call) (any, error) {
	var o BootOptions
	if err := c.need(&o, "acpi"); err != nil {
		return nil, err
	}
	return s.configure(func(spec *Spec) error {
		spec.Options = o
		return nil
	})
}

// number reads a parameter of the query; 0 where there is none.
func (c *call) number(name string, most int64) (int64, error) {
	v := c.URL.Query().Get(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 63)
	if err != nil || n < 0 || n > most {
		return 0, badf("%s=%.32q: must be a number from 0 to %d.", name, v, most)
	}
	return n, nil
}

// maxTail bounds an answer of the console's, in bytes.
const maxTail = 1 << 20

func (s *Server) console(c *call) (any, error) {
	n, err := c.number("tail", maxTail)
	switch {
	case err != nil:
		return nil, err
	case s.cfg.Console == nil:
		return nil, &statusError{http.StatusNotFound, errors.New("this machine's console is kept nowhere: it is where its flag -console says")}
	case n == 0:
		n = maxTail
	}
	r, err := s.cfg.Console.Tail(n)
	if err != nil {
		return nil, &statusError{http.StatusInternalServerError, err}
	}
	text, err := io.ReadAll(io.LimitReader(r, n))
	if err != nil {
		return nil, &statusError{http.StatusInternalServerError, err}
	}
	return rawText{"application/octet-stream", text}, nil
}

// Bounds of a stop.
const (
	maxGrace  = 24 * time.Hour
	askingFor = 5 * time.Second // how long asking the guest may take
)

// shutdown is SendCtrlAltDel: it asks the guest, and does nothing else.
func (s *Server) shutdown(c *call) (any, error) {
	state, err := s.machine()
	switch {
	case err != nil:
		return nil, err
	case state == client.Paused:
		return nil, badf("a paused guest hears nothing: resume it first.")
	}
	if err := s.ask(c); err != nil {
		return nil, badf("SendCtrlAltDel: %w: PUT /smolvmm/stop or /smolvmm/kill ends the machine all the same.", err)
	}
	s.event(client.EventStopping, c.caller()+" asked the guest to shut down")
	return nil, nil
}

// ask asks the guest to shut down.
func (s *Server) ask(c *call) error {
	a := s.guestAgent()
	if a == nil {
		return ErrNoAgent
	}
	ctx, cancel := background(c, askingFor)
	defer cancel()
	return a.Shutdown(ctx)
}

func (s *Server) guestAgent() Agent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Agent
}

func (s *Server) event(what, text string) { s.events.add(client.Event{Event: what, Text: text}) }

// stop asks the guest, and ends the machine when the grace is over; at once where
// there is nobody to ask.
func (s *Server) stop(c *call) (any, error) {
	var req stopRequest
	if err := c.need(&req, "grace_ms"); err != nil {
		return nil, err
	}
	grace := time.Duration(req.GraceMS) * time.Millisecond
	if req.GraceMS < 0 || req.GraceMS > maxGrace.Milliseconds() {
		return nil, badf("grace_ms %d: must be between 0 and %d.", req.GraceMS, maxGrace.Milliseconds())
	}
	who := c.caller()
	state, err := s.machine()
	asked := false
	var gone *statusError
	switch {
	case errors.As(err, &gone) && gone.status == http.StatusGone:
		return nil, err
	case err != nil: // nothing runs: the process ends
	case state == client.Running:
		asked = s.ask(c) == nil
	}
	if !asked {
		s.event(client.EventStopping, who+" ended the machine: there was nobody to ask")
		s.cfg.Host.Kill("stopped by " + who)
		return map[string]bool{"asked": false}, nil
	}
	s.event(client.EventStopping, who+" asked the guest to shut down within "+grace.String())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping != nil {
		s.stopping.Stop() // the latest grace counts
	}
	if s.state != client.Ended && !s.closed {
		s.stopping = time.AfterFunc(grace, func() { s.cfg.Host.Kill("the guest did not shut down within " + grace.String()) })
	}
	return map[string]bool{"asked": true}, nil
}

func (s *Server) kill(c *call) (any, error) {
	s.event(client.EventStopping, c.caller()+" killed the machine")
	s.cfg.Host.Kill("killed by " + c.caller())
	return nil, nil
}

// agent joins the caller to the agent in the guest (RFC 9110 §7.8).
func (s *Server) agent(c *call) (any, error) {
	a := s.guestAgent()
	switch {
	case c.Header.Get("Upgrade") != client.AgentProtocol:
		return nil, &statusError{http.StatusUpgradeRequired, errors.New("this path is a byte stream: ask with Connection: Upgrade and Upgrade: " + client.AgentProtocol)}
	case a == nil:
		return nil, &statusError{http.StatusNotImplemented, ErrNoAgent}
	}
	if _, err := s.machine(); err != nil {
		return nil, err
	}
	guest, err := a.Dial(c.Context())
	switch {
	case errors.Is(err, ErrNoAgent):
		return nil, &statusError{http.StatusNotImplemented, err}
	case err != nil:
		return nil, &statusError{http.StatusBadGateway, err}
	}
	defer guest.Close()
	conn, rw, err := c.rc.Hijack()
	if err != nil {
		return nil, &statusError{http.StatusInternalServerError, err}
	}
	defer conn.Close()
	if conn.SetDeadline(time.Time{}) != nil {
		return answered, nil
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+client.AgentProtocol+"\r\n\r\n"); err != nil {
		return answered, nil
	}
	s.relay(conn, rw.Reader, guest)
	return answered, nil
}

// lookEvery is how often it is seen to that a relay still has its caller. A guest
// that neither reads nor hangs up would keep it, and the caller's place, for ever.
const lookEvery = time.Second

// relay copies both ways until both have ended, the caller has gone or the server
// closes.
func (s *Server) relay(conn net.Conn, ahead io.Reader, guest net.Conn) {
	over := make(chan struct{})
	defer close(over)
	s.tasks.Go(func() {
		look := time.NewTicker(lookEvery)
		defer look.Stop()
		for gone := false; !gone; {
			select {
			case <-s.closing:
				gone = true
			case <-look.C:
				gone = hasGone(conn)
			case <-over:
				return
			}
		}
		conn.Close()
		guest.Close()
	})
	var both sync.WaitGroup
	both.Go(func() {
		refused, err := half(guest, ahead)
		switch {
		case refused:
			// It takes no more, which a command that has ended does not either; what
			// it has said before that is still on its way to the caller.
			_, _ = io.Copy(io.Discard, ahead)
		case err != nil:
			conn.Close()
			guest.Close()
		}
	})
	if _, err := half(conn, guest); err != nil {
		conn.Close()
		guest.Close()
	}
	both.Wait()
}

// half copies one way and passes its end on; refused says that the error is the
// receiver's. The structs hide methods by which io.Copy would splice, which the jail
// refuses.
func half(to net.Conn, from io.Reader) (refused bool, err error) {
	w := &receiver{to: to}
	if _, err = io.Copy(w, struct{ io.Reader }{from}); err == nil {
		if h, ok := to.(interface{ CloseWrite() error }); ok {
			w.err = h.CloseWrite()
		} else {
			w.err = errors.ErrUnsupported
		}
		err = w.err
	}
	return w.err != nil, err
}

// receiver remembers that a connection took no more.
type receiver struct {
	to  io.Writer
	err error
}

func (r *receiver) Write(b []byte) (int, error) {
	n, err := r.to.Write(b)
	r.err = err
	return n, err
}

// metricsOf gives the machine's counters, if there is a machine.
func (s *Server) metricsOf() (vmm.Metrics, []map[string]uint64, bool) {
	if _, err := s.machine(); err != nil {
		return vmm.Metrics{}, nil, false
	}
	return s.cfg.Host.Metrics(), s.cfg.Host.Egress(), true
}
