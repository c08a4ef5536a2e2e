package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzRequest: no request makes the server panic or answer in another way than
// its own, and what it takes a lenient decoder of the same fields would take too.
func FuzzRequest(f *testing.F) {
	var doc struct {
		Paths map[string]map[string]struct {
			RequestBody struct {
				Content map[string]struct {
					Example json.RawMessage `json:"example"`
				} `json:"content"`
			} `json:"requestBody"`
		} `json:"paths"`
	}
	if err := json.Unmarshal([]byte(openAPIFile), &doc); err != nil {
		f.Fatal(err)
	}
	self := "/proc/self/exe" // a file that is there
	for path, methods := range doc.Paths {
		for method, op := range methods {
			body := string(op.RequestBody.Content["application/json"].Example)
			for _, p := range []string{"/boot/netbsd", "/srv/root.img"} {
				body = strings.ReplaceAll(body, p, self)
			}
			id := "x"
			if strings.Contains(body, "rootfs") {
				id = "rootfs"
			} else if strings.Contains(body, "eth0") {
				id = "eth0"
			}
			f.Add(strings.ToUpper(method), strings.ReplaceAll(path, "{id}", id), []byte(body), true)
			f.Add(strings.ToUpper(method), strings.ReplaceAll(path, "{id}", id), []byte(body), false)
		}
	}
	f.Add("PUT", "/network-interfaces/eth0", []byte(`{"iface_id":"eth0","host_dev_name":"t","rx_rate_limiter":{"bandwidth":{"size":9,"refill_time":7,"one_time_burst":0},"ops":{"size":1,"refill_time":7}}}`), false)
	f.Add("PUT", "/machine-config", []byte(`{"vcpu_count":1,"mem_size_mib":64,"mem_size_mib":65}`), false)
	f.Add("PUT", "/machine-config", []byte(`{"vcpu_count":{"a":{"b":[[[[]]]]}},"mem_size_mib":1e3}`), false)
	f.Fuzz(func(t *testing.T, method, path string, body []byte, started bool) {
		u, err := url.Parse(path)
		if err != nil || u.Path == "" || u.Path[0] != '/' || strings.Trim(u.Path, "/") == "smolvmm/events" || strings.ContainsAny(method, " \t\r\n/\x00") || method == "" {
			return
		}
		host := newFake()
		s, err := New(Config{Host: host})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.sink = &sink{path: "x", fd: -1} // so that no path of a fuzzer's is opened
		if started {
			s.Started()
		}
		w := httptest.NewRecorder()
		req := httptest.NewRequest("GET", "/", strings.NewReader(string(body)))
		req.Method, req.URL = method, u
		s.ServeHTTP(w, req)
		out := w.Body.Bytes()
		switch {
		case w.Code == http.StatusNoContent:
			if len(out) != 0 {
				t.Errorf("204 with %q", out)
			}
		case w.Code == http.StatusOK:
			if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && !json.Valid(out) {
				t.Errorf("200 with %q", out)
			}
		case w.Code >= 400 && w.Code < 500 || w.Code == http.StatusNotImplemented:
			var fault map[string]string
			if err := json.Unmarshal(out, &fault); err != nil || len(fault) != 1 || fault["fault_message"] == "" {
				t.Errorf("%d with %q", w.Code, out)
			}
		default:
			t.Errorf("%s %s: %d %q", method, path, w.Code, out)
		}
		if w.Code == http.StatusNoContent && len(body) > 0 && method != "GET" && !strings.HasSuffix(strings.Trim(u.Path, "/"), "kill") {
			var any map[string]json.RawMessage
			if err := json.Unmarshal(body, &any); err != nil {
				t.Errorf("%s %s took %q: %v", method, path, body, err)
			}
		}
		// What was taken is whole.
		if err := s.spec.Machine.check(); err != nil {
			t.Errorf("a machine that cannot be was taken: %v", err)
		}
		for i, d := range s.spec.Drives {
			if d.check() != nil || checkID(d.ID) != nil || d.Root && i > 0 {
				t.Errorf("drive %+v was taken", d)
			}
		}
		for _, n := range s.spec.Nets {
			if n.check() != nil || checkID(n.ID) != nil {
				t.Errorf("interface %+v was taken", n)
			}
		}
	})
}
