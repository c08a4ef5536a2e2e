package oci

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/crypto/bcrypt"
)

const (
	testUser     = "otto"
	testPassword = "s3cret:with a colon"
)

// inProcess is go-containerregistry's server, which knows the referrers API.
func inProcess() http.Handler {
	return registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
}

func serve(t *testing.T, h http.Handler) (host string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// debian runs Debian's docker-registry, the reference implementation of its
// time (distribution 2.8), which has no referrers API; with a password file
// where auth is set. It gives host and port.
func debian(t *testing.T, auth bool) string {
	t.Helper()
	if _, err := exec.LookPath("docker-registry"); err != nil {
		t.Skip("NOT RUN: docker-registry is not installed (Debian's package docker-registry): images were held against the in-process registry only")
	}
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:0}\n", filepath.Join(dir, "data"))
	if auth {
		hash, err := bcrypt.GenerateFromPassword([]byte(testPassword), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		passwords := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(passwords, []byte(testUser+":"+string(hash)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		config += "auth: {htpasswd: {realm: test, path: " + passwords + "}}\n"
	}
	name := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(name, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", name)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if _, after, ok := strings.Cut(lines.Text(), "listening on "); ok {
			go io.Copy(io.Discard, stderr)
			addr, _, _ := strings.Cut(after, `"`)
			return addr
		}
	}
	t.Fatalf("docker-registry ended: %v", lines.Err())
	return ""
}
