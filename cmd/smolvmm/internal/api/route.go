package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// statusError is an error with the HTTP status that tells of it.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// badf is an error of the caller's: 400, as for all of Firecracker's.
func badf(format string, args ...any) error {
	return &statusError{http.StatusBadRequest, fmt.Errorf(format, args...)}
}

// call is one request, its body read.
type call struct {
	*http.Request
	w    http.ResponseWriter
	rc   *http.ResponseController
	body []byte
	id   string // what stands for {id} in the path
}

// route is a path and what answers it. A nil answer is 204; raw text is sent as
// it is; a handler that answers itself gives answered.
type route struct {
	method, path string
	handle       func(s *Server, c *call) (any, error)
}

type rawText struct {
	kind string // Content-Type
	text []byte
}

type done struct{}

var answered any = done{}

// routes is all that there is: the OpenAPI file says the same, and a test holds
// them to each other.
func routes() []route {
	get, put, patch, del := http.MethodGet, http.MethodPut, http.MethodPatch, http.MethodDelete
	all := []route{
		{get, "/", (*Server).describe},
		{get, "/version", (*Server).getVersion},
		{get, "/vm/config", (*Server).getConfig},
		{patch, "/vm", (*Server).patchVM},
		{put, "/actions", (*Server).putAction},
		{get, "/machine-config", (*Server).getMachine},
		{put, "/machine-config", (*Server).putMachine},
		{patch, "/machine-config", (*Server).patchMachine},
		{put, "/boot-source", (*Server).putBoot},
		{put, "/drives/{id}", (*Server).putDrive},
		{patch, "/drives/{id}", (*Server).patchDrive},
		{del, "/drives/{id}", refuse("a disk cannot be taken out of a machine: smolvmm has no hot-unplugging")},
		{put, "/network-interfaces/{id}", (*Server).putNet},
		{patch, "/network-interfaces/{id}", (*Server).patchNet},
		{del, "/network-interfaces/{id}", refuse("an interface cannot be taken out of a machine: smolvmm has no hot-unplugging")},
		{put, "/vsock", (*Server).putVsock},
		{put, "/logger", (*Server).putLogger},
		{put, "/metrics", (*Server).putMetrics},
		{get, "/metrics", (*Server).getMetrics},

		{get, "/smolvmm/info", (*Server).info},
		{get, "/smolvmm/ports", (*Server).ports},
		{get, "/smolvmm/egress", (*Server).egress},
		{get, "/smolvmm/flows", (*Server).flows},
		{get, "/smolvmm/boot", (*Server).getBootOptions},
		{put, "/smolvmm/boot", (*Server).putBootOptions},
		{get, "/smolvmm/events", (*Server).streamEvents},
		{get, "/smolvmm/console", (*Server).console},
		{get, "/smolvmm/agent", (*Server).agent},
		{put, "/smolvmm/stop", (*Server).stop},
		{put, "/smolvmm/kill", (*Server).kill},
		{get, "/smolvmm/openapi.json", (*Server).openAPI},
	}
	for _, r := range []struct{ methods, path, why string }{
		{"GET PUT PATCH", "/balloon", "smolvmm has no balloon: memory that the guest does not touch costs nothing"},
		{"GET PATCH", "/balloon/statistics", "smolvmm has no balloon, and so no statistics of one"},
		{"PATCH", "/balloon/hinting/start", "smolvmm has no balloon, and so no hinting"},
		{"GET", "/balloon/hinting/status", "smolvmm has no balloon, and so no hinting"},
		{"PATCH", "/balloon/hinting/stop", "smolvmm has no balloon, and so no hinting"},
		{"GET PUT PATCH", "/mmds", "smolvmm has no metadata service: give the guest items with -env, -file and -secret"},
		{"PUT", "/mmds/config", "smolvmm has no metadata service: give the guest items with -env, -file and -secret"},
		{"PUT", "/cpu-config", "smolvmm takes no CPU configuration here: its flag -cpu has templates"},
		{"PUT", "/entropy", "smolvmm has no entropy device: the guest has RDRAND"},
		{"PUT", "/serial", "smolvmm's console is where its flag -console says"},
		{"PUT PATCH DELETE", "/pmem/{id}", "smolvmm has no persistent memory"},
		{"GET PUT PATCH", "/hotplug/memory", "smolvmm has no hot-plugging of memory"},
		{"PUT", "/snapshot/create", "smolvmm writes no snapshots to files"},
		{"PUT", "/snapshot/load", "smolvmm reads no snapshots from files"},
	} {
		for m := range strings.FieldsSeq(r.methods) {
			all = append(all, route{m, r.path, refuse(r.why)})
		}
	}
	return all
}

// refuse answers a path of Firecracker's that smolvmm has nothing for.
func refuse(why string) func(*Server, *call) (any, error) {
	return func(*Server, *call) (any, error) { return nil, badf("%s.", why) }
}

// find gives the route for a request, and the {id} in its path. known says that
// the path is one, if with another method.
func (s *Server) find(method, path string) (r *route, id string, known bool) {
	path = "/" + strings.Trim(path, "/")
	for i := range s.routes {
		c := &s.routes[i]
		got, ok := "", c.path == path
		if prefix, has := strings.CutSuffix(c.path, "{id}"); has {
			got, ok = strings.CutPrefix(path, prefix)
			ok = ok && !strings.Contains(got, "/")
		}
		if !ok {
			continue
		}
		if c.method == method {
			return c, got, true
		}
		known = true
	}
	return nil, "", known
}

// Patience with whoever is at the other end.
const (
	headerTimeout = 5 * time.Second  // for the request's head
	bodyTimeout   = 10 * time.Second // for all of a request
	idleTimeout   = 2 * time.Minute  // between two requests
	answerTimeout = 10 * time.Second // for taking the answer
	maxHeader     = 8 << 10          // bytes of a request's head
)

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.counters.requests.Add(1)
	if !s.enter() {
		writeJSON(w, http.StatusServiceUnavailable, map[string]string{"fault_message": "the machine is ending"})
		return
	}
	defer s.calls.Done()
	c := &call{Request: req, w: w, rc: http.NewResponseController(w)}
	out, err := s.answer(c)
	if out == answered {
		return
	}
	_ = c.rc.SetWriteDeadline(time.Now().Add(answerTimeout))
	// Sent before this returns: the process may be about to end.
	defer c.rc.Flush()
	if err != nil {
		s.counters.refused.Add(1)
		status := http.StatusBadRequest
		var e *statusError
		if errors.As(err, &e) {
			status = e.status
		}
		s.log.Debug("api: refused", "method", req.Method, "path", req.URL.Path, "status", status, "err", err)
		writeJSON(w, status, map[string]string{"fault_message": err.Error()})
		return
	}
	switch v := out.(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case rawText:
		w.Header().Set("Content-Type", v.kind)
		w.Header().Set("Content-Length", strconv.Itoa(len(v.text)))
		_, _ = w.Write(v.text)
	default:
		writeJSON(w, http.StatusOK, v)
	}
}

func (s *Server) answer(c *call) (any, error) {
	r, id, known := s.find(c.Method, c.URL.Path)
	if r == nil {
		err := fmt.Errorf("Invalid request method and/or path: %s %.256q.", c.Method, c.URL.Path)
		switch {
		case !strings.HasPrefix(c.URL.Path, "/smolvmm/"):
			return nil, &statusError{http.StatusBadRequest, err} // as Firecracker
		case known:
			return nil, &statusError{http.StatusMethodNotAllowed, err}
		}
		return nil, &statusError{http.StatusNotFound, err}
	}
	c.id = id
	var err error
	c.body, err = io.ReadAll(http.MaxBytesReader(c.w, c.Request.Body, maxBody))
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return nil, &statusError{http.StatusRequestEntityTooLarge, fmt.Errorf("The body has more than %d bytes.", maxBody)}
	case err != nil:
		return nil, badf("The body could not be read: %w.", err)
	case c.Method == http.MethodGet && len(c.body) > 0:
		return nil, badf("GET request cannot have a body.")
	}
	// Else the deadline of reading would cut off answers that take longer.
	_ = c.rc.SetReadDeadline(time.Time{})
	return r.handle(s, c)
}

// need says that there must be a body, in Firecracker's words.
func (c *call) need(out any, required ...string) error {
	if len(c.body) == 0 {
		return badf("Empty %s request.", c.Method)
	}
	return decode(c.body, out, required...)
}

// line is a value as a line of JSON; what HTML would take for its own is as it is, for
// whoever reads it from curl.
func line(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := line(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"fault_message":"the answer cannot be put into JSON"}`+"\n")
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// caller tells who asks, for events.
func (c *call) caller() string {
	if p, ok := c.Context().Value(peerKey{}).(peer); ok {
		return fmt.Sprintf("the API (uid %d, pid %d)", p.uid, p.pid)
	}
	return "the API"
}

// background is a context for what must not end with a request.
func background(c *call, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.Context()), limit)
}
