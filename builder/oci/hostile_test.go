package oci

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/store"
)

// TestHostileRegistry spoils one answer of a good registry after the other.
func TestHostileRegistry(t *testing.T) {
	good := inProcess()
	host := serve(t, good)
	s := open(t)
	e, key := keyFor(t, s, image(t, s, "web"))
	if _, err := Push(t.Context(), s, e, ref(t, host+"/web"), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := s.Pack(t.Context(), e, store.PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	disk, manifest := p.Parts[1].Digest, p.Digest
	record := func(r *http.Request) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		good.ServeHTTP(w, r)
		return w
	}
	isDisk := func(r *http.Request) bool { return r.Method == "GET" && strings.HasSuffix(r.URL.Path, disk) }
	isTag := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/manifests/latest") }
	var asked atomic.Int32
	for name, c := range map[string]struct {
		want  string
		spoil func(w http.ResponseWriter, r *http.Request) bool
	}{
		"other bytes": {"refused: ", func(w http.ResponseWriter, r *http.Request) bool {
			if !isDisk(r) {
				return false
			}
			b := record(r).Body.Bytes()
			b[len(b)/2] ^= 1
			w.Write(b)
			return true
		}},
		"a longer body": {"", func(w http.ResponseWriter, r *http.Request) bool {
			if !isDisk(r) {
				return false
			}
			w.Write(record(r).Body.Bytes())
			w.(http.Flusher).Flush()
			for range 1000 {
				w.Write(make([]byte, 1<<16))
			}
			return true
		}},
		"a shorter body": {"", func(w http.ResponseWriter, r *http.Request) bool {
			if !isDisk(r) {
				return false
			}
			b := record(r).Body.Bytes()
			w.Write(b[:len(b)/2])
			w.(http.Flusher).Flush()
			return true
		}},
		"a connection that breaks": {"", func(w http.ResponseWriter, r *http.Request) bool {
			if !isDisk(r) {
				return false
			}
			b := record(r).Body.Bytes()
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.Write(b[:len(b)/2])
			return true
		}},
		"a body that stalls": {ErrStalled.Error(), func(w http.ResponseWriter, r *http.Request) bool {
			if !isDisk(r) {
				return false
			}
			w.Write(record(r).Body.Bytes()[:100])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}},
		"no disk": {ErrNotFound.Error(), func(w http.ResponseWriter, r *http.Request) bool {
			if !isDisk(r) {
				return false
			}
			http.NotFound(w, r)
			return true
		}},
		"a manifest under another digest": {"", func(w http.ResponseWriter, r *http.Request) bool {
			if !isTag(r) {
				return false
			}
			b := append(record(r).Body.Bytes(), ' ')
			w.Header().Set("Content-Type", store.TypeManifest)
			w.Header().Set("Docker-Content-Digest", manifest)
			w.Write(b)
			return true
		}},
		"a huge manifest": {"at most", func(w http.ResponseWriter, r *http.Request) bool {
			if !isTag(r) {
				return false
			}
			w.Header().Set("Content-Type", store.TypeManifest)
			w.Header().Set("Docker-Content-Digest", manifest)
			w.Header().Set("Content-Length", strconv.Itoa(100<<20))
			w.Write(make([]byte, 1<<20))
			return true
		}},
		"a container's manifest": {"no image of a machine", func(w http.ResponseWriter, r *http.Request) bool {
			if !isTag(r) {
				return false
			}
			b := `{"schemaVersion":2,"mediaType":"` + store.TypeManifest + `","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + disk + `","size":2},"layers":[]}`
			w.Header().Set("Content-Type", store.TypeManifest)
			w.Write([]byte(b))
			return true
		}},
		"an index": {"several platforms", func(w http.ResponseWriter, r *http.Request) bool {
			if !isTag(r) {
				return false
			}
			w.Header().Set("Content-Type", store.TypeIndex)
			w.Write([]byte(`{"schemaVersion":2,"mediaType":"` + store.TypeIndex + `","manifests":[]}`))
			return true
		}},
		"a circle of redirections": {"redirections", func(w http.ResponseWriter, r *http.Request) bool {
			if !isDisk(r) {
				return false
			}
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return true
		}},
		"a redirection into the clear": {"without TLS", func(w http.ResponseWriter, r *http.Request) bool {
			if !isDisk(r) {
				return false
			}
			http.Redirect(w, r, "http://198.51.100.1/x", http.StatusFound)
			return true
		}},
		"an escape sequence in an error": {"400 ", func(w http.ResponseWriter, r *http.Request) bool {
			if !isDisk(r) {
				return false
			}
			w.WriteHeader(http.StatusBadRequest)
			w.Write([]byte(`{"errors":[{"code":"X","message":"\u001b[2J` + strings.Repeat("x", 5000) + `"}]}`))
			return true
		}},
		"a password elsewhere": {"without TLS", func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://198.51.100.1/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}},
		"signatures without end": {"", func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/referrers/") {
				return false
			}
			asked.Add(1)
			w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d>; rel="next"`, r.URL.Path, asked.Load()))
			w.Header().Set("Content-Type", store.TypeIndex)
			w.Write([]byte(`{"schemaVersion":2,"mediaType":"` + store.TypeIndex + `","manifests":[]}`))
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			evil := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !c.spoil(w, r) {
					good.ServeHTTP(w, r)
				}
			}))
			to := open(t)
			_, err := Pull(t.Context(), to, ref(t, evil+"/web"), PullOptions{
				Keys: []sign.PublicKey{key},
				Options: Options{
					Stall:       300 * time.Millisecond,
					Credentials: func(string) Credential { return Credential{Username: "u", Password: "p"} },
				},
			})
			if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 800 || strings.ContainsRune(err.Error(), 0x1b) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if all, err := to.List(); err != nil || len(all) != 0 {
				t.Errorf("%d images, %v", len(all), err)
			}
			if left, err := os.ReadDir(filepath.Join(to.Blobs().Dir(), "tmp")); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
	if n := asked.Load(); n > maxReferrerPages+1 {
		t.Errorf("%d pages of signatures were asked for", n)
	}
	// The registry that the others are spoilt from is good.
	if _, err := Pull(t.Context(), open(t), ref(t, host+"/web"), PullOptions{Keys: []sign.PublicKey{key}}); err != nil {
		t.Error(err)
	}
}

// TestRedirection: a registry may send for a content elsewhere, as those do that
// keep them in another's cloud, and the credentials do not go along.
func TestRedirection(t *testing.T) {
	good := inProcess()
	host := serve(t, good)
	s := open(t)
	e := image(t, s, "web")
	if _, err := Push(t.Context(), s, e, ref(t, host+"/web"), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	var went, leaked, known atomic.Int32
	cloud := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		went.Add(1)
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		good.ServeHTTP(w, r)
	}))
	front := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, ok := r.BasicAuth(); !ok || user != testUser || pass != testPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		known.Add(1)
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, "http://"+cloud+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		good.ServeHTTP(w, r)
	}))
	got, err := Pull(t.Context(), open(t), ref(t, front+"/web"), PullOptions{Options: Options{
		Credentials: func(string) Credential { return Credential{Username: testUser, Password: testPassword} },
	}})
	if err != nil || got.ID != e.ID {
		t.Fatal(err)
	}
	if known.Load() == 0 || went.Load() == 0 || leaked.Load() != 0 {
		t.Errorf("%d times known, %d times redirected, %d times with the password", known.Load(), went.Load(), leaked.Load())
	}
}
