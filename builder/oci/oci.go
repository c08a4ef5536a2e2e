// Package oci moves images between a store and a registry (OCI distribution
// specification 1.1) as OCI artifacts; package store says what is in them. A
// registry is not trusted: sizes are bounded, digests checked, and what is not
// understood is refused by its name.
package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/store"
)

// What an error can be about, for errors.Is; package store's too.
var (
	ErrNotFound = errors.New("the registry has no such image")
	ErrDenied   = errors.New("the registry wants other credentials")
	ErrStalled  = errors.New("the registry sends nothing any more")
)

// Options say how a registry is reached.
type Options struct {
	// Credentials gives those of a registry (host and port as the image's name has
	// them); nil: none.
	Credentials func(host string) Credential
	// PlainHTTP asks for HTTP without TLS; to the loopback it is used unasked.
	PlainHTTP bool
	// Transport reaches the network; nil: a plain one, with Proxy.
	Transport http.RoundTripper
	Proxy     func(*http.Request) (*url.URL, error)
	UserAgent string
	// Progress is told how much of what ("disk", "kernel", "tree") has passed, bytes.
	Progress func(what string, got, total int64)
	// Warn is told of what went wrong and does not matter much.
	Warn func(error)
	// Stall is how long a registry may send nothing; 0 is a minute.
	Stall time.Duration
}

const (
	maxRedirects = 10
	defaultStall = time.Minute
	// maxReferrerPages bounds the lists of signatures that are read: each page has
	// at most 4 MiB, hundreds of entries.
	maxReferrerPages = 4
	// maxSignatures of an image that are fetched.
	maxSignatures = 64
)

// PullOptions say what is taken.
type PullOptions struct {
	Options
	Names   []spec.Reference // in the store; none: the reference that is pulled
	Keys    []sign.PublicKey // see store.Unpack
	NoTree  bool
	MaxDisk int64 // bytes; 0 is store.DefaultMaxDisk
}

// Pull fetches an image into a store.
func Pull(ctx context.Context, s *store.Store, ref spec.Reference, o PullOptions) (store.Entry, error) {
	r, err := o.repository(ref)
	if err != nil {
		return store.Entry{}, err
	}
	desc, manifest, err := r.manifest(ctx, reference(ref))
	if err != nil {
		return store.Entry{}, r.explain(ctx, ref, err)
	}
	u := store.Unpack{
		Manifest: manifest, Names: o.Names, Keys: o.Keys, NoTree: o.NoTree, MaxDisk: o.MaxDisk, Progress: o.Progress,
		Digests: []string{ref.Repository() + "@" + desc.Digest.String()},
		Fetch:   r.fetch,
	}
	if u.Names == nil && ref.Tag != "" {
		u.Names = []spec.Reference{ref.Tagged()}
	}
	if u.Signatures, err = r.signatures(ctx, desc); err != nil {
		if len(o.Keys) > 0 {
			return store.Entry{}, r.explain(ctx, ref, fmt.Errorf("its signatures: %w", err))
		}
		if o.Warn != nil {
			o.Warn(r.explain(ctx, ref, fmt.Errorf("its signatures were not fetched: %w", err)))
		}
	}
	e, err := s.Unpack(ctx, u)
	if err != nil {
		return e, r.explain(ctx, ref, err)
	}
	return e, nil
}

// PushOptions say what is given.
type PushOptions struct {
	Options
	Raw, NoTree bool // see store.PackOptions
}

// Push puts an image and its signatures into a registry under the reference's
// tag. It gives the manifest's digest.
func Push(ctx context.Context, s *store.Store, e store.Entry, ref spec.Reference, o PushOptions) (string, error) {
	if ref.Digest != "" || ref.Tag == "" {
		return "", fmt.Errorf("push: %s: want a tag, and no digest", ref)
	}
	r, err := o.repository(ref)
	if err != nil {
		return "", err
	}
	p, err := s.Pack(ctx, e, store.PackOptions{Raw: o.Raw, NoTree: o.NoTree})
	if err != nil {
		return "", err
	}
	defer p.Close()
	if err := r.push(ctx, p, ref.Tag); err != nil {
		return "", r.explain(ctx, ref, err)
	}
	for _, sig := range p.Signatures {
		if err := r.push(ctx, sig, ""); err != nil {
			return "", r.explain(ctx, ref, fmt.Errorf("a signature: %w", err))
		}
	}
	return p.Digest, s.AddDigest(e.ID, ref.Repository()+"@"+p.Digest)
}

// repo is a repository of a registry.
type repo struct {
	*remote.Repository
	o    *Options
	cred Credential
}

// reference is what a manifest is asked for by: the digest where there is one.
func reference(r spec.Reference) string {
	if r.Digest != "" {
		return r.Digest
	}
	return r.Tag
}

func (o *Options) repository(ref spec.Reference) (*repo, error) {
	if ref.Registry == "" {
		return nil, fmt.Errorf("%s names no registry: write HOST/%s", ref, ref)
	}
	r := &repo{o: o, Repository: &remote.Repository{
		Reference: registry.Reference{Registry: ref.Registry, Repository: ref.Name, Reference: reference(ref)},
		PlainHTTP: o.PlainHTTP || loopback(ref.Registry),
		// Old indexes of referrers stay: many registries forbid to delete.
		SkipReferrersGC:      true,
		ReferrerListMaxPages: maxReferrerPages,
		MaxMetadataBytes:     store.MaxManifest,
	}}
	if err := r.Reference.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	if o.Credentials != nil {
		r.cred = o.Credentials(ref.Registry)
	}
	base := o.Transport
	if base == nil {
		base = &http.Transport{
			Proxy: o.Proxy, DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout: 15 * time.Second,
			// A registry reads a disk once more before it answers.
			ResponseHeaderTimeout: 5 * o.stall(),
			ForceAttemptHTTP2:     true, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
			MaxResponseHeaderBytes: 256 << 10,
		}
	}
	client := &auth.Client{
		Client: &http.Client{
			Transport:     &guard{base: retry.NewTransport(base), plain: r.PlainHTTP, host: r.Reference.Host()},
			CheckRedirect: checkRedirect,
		},
		Cache: auth.NewCache(),
		// The credentials are this registry's, and nobody else is given them.
		Credential: auth.StaticCredential(ref.Registry, auth.Credential{
			Username: r.cred.Username, Password: r.cred.Password, RefreshToken: r.cred.IdentityToken,
		}),
	}
	if o.UserAgent != "" {
		client.SetUserAgent(o.UserAgent)
	}
	r.Client = client
	return r, nil
}

func (o *Options) stall() time.Duration {
	if o.Stall > 0 {
		return o.Stall
	}
	return defaultStall
}

// loopback tells whether a registry is on this host.
func loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && a.IsLoopback()
}

// guard keeps what should be encrypted from going in the clear, wherever a
// registry redirects to or wants tokens asked for.
type guard struct {
	base  http.RoundTripper
	plain bool // the registry itself is spoken to without TLS
	host  string
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !(g.plain && (r.URL.Host == g.host || loopback(r.URL.Host))) {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, fmt.Errorf("%w: %s would be asked without TLS", store.ErrRefused, r.URL.Host)
	}
	return g.base.RoundTrip(r)
}

func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d redirections", store.ErrRefused, maxRedirects)
	}
	// Go keeps the header for another port of the same host.
	if r.URL.Host != via[0].URL.Host {
		r.Header.Del("Authorization")
	}
	return nil
}

// manifest fetches a manifest by tag or digest.
func (r *repo) manifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error) {
	desc, body, err := r.Manifests().FetchReference(ctx, reference)
	if err != nil {
		return desc, nil, err
	}
	defer body.Close()
	if desc.Size > store.MaxManifest {
		return desc, nil, fmt.Errorf("%w: a manifest of %d bytes; at most %d are read", store.ErrRefused, desc.Size, store.MaxManifest)
	}
	if strings.HasPrefix(reference, "sha256:") && desc.Digest.String() != reference {
		return desc, nil, fmt.Errorf("%w: asked for %s, the registry gives %s", store.ErrRefused, reference, desc.Digest)
	}
	if desc.Digest.Algorithm() != digest.SHA256 {
		return desc, nil, fmt.Errorf("%w: a manifest with the digest %.80q; sha256 is known", store.ErrRefused, desc.Digest)
	}
	b, err := content.ReadAll(body, desc)
	if err != nil {
		err = fmt.Errorf("%w: the manifest: %w", store.ErrRefused, err)
	}
	return desc, b, err
}

// fetch is a store.Unpack's Fetch.
func (r *repo) fetch(ctx context.Context, d store.Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	body, err := r.Blobs().Fetch(ctx, descriptor(d))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return newStalling(ctx, body, r.o.stall(), cancel), nil
}

func descriptor(d store.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: d.MediaType, Digest: digest.Digest(d.Digest), Size: d.Size,
		ArtifactType: d.ArtifactType, Annotations: d.Annotations,
	}
}

// signatures fetches the signatures that are attached to a manifest; those that
// are not well formed are passed over.
func (r *repo) signatures(ctx context.Context, of ocispec.Descriptor) ([][]byte, error) {
	var list []ocispec.Descriptor
	err := r.Referrers(ctx, of, "", func(page []ocispec.Descriptor) error {
		for _, d := range page {
			// Some registries tell the config's type or none: the manifest itself has it.
			if (d.ArtifactType == sign.MediaType || d.ArtifactType == store.TypeEmpty || d.ArtifactType == "") && len(list) < maxSignatures {
				list = append(list, d)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var files [][]byte
	for _, d := range list {
		_, b, err := r.manifest(ctx, d.Digest.String())
		if err != nil {
			return files, err
		}
		m, err := store.ParseManifest(b)
		if err != nil || m.ArtifactType != sign.MediaType || m.Subject == nil || m.Subject.Digest != of.Digest.String() || len(m.Layers) != 1 || m.Layers[0].Size > sign.MaxFile {
			continue
		}
		body, err := r.fetch(ctx, m.Layers[0])
		if err != nil {
			return files, err
		}
		file, err := content.ReadAll(body, descriptor(m.Layers[0]))
		body.Close()
		if err != nil {
			return files, fmt.Errorf("%w: a signature: %w", store.ErrRefused, err)
		}
		files = append(files, file)
	}
	return files, nil
}

// push sends an artifact; what the registry has is not sent again.
func (r *repo) push(ctx context.Context, p *store.Packed, tag string) error {
	for _, part := range p.Parts {
		d := descriptor(part.Descriptor)
		there, err := r.Blobs().Exists(ctx, d)
		if err != nil {
			return err
		}
		if there {
			continue
		}
		body, err := part.Open()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancelCause(ctx)
		w := newStalling(ctx, body, r.o.stall(), cancel)
		w.sending, w.what, w.total, w.progress = true, what(part.MediaType), part.Size, r.o.Progress
		err = r.Blobs().Push(ctx, d, w)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause
		}
		w.Close()
		cancel(nil)
		if err != nil {
			return err
		}
	}
	if tag == "" {
		return r.Manifests().Push(ctx, descriptor(p.Descriptor), bytes.NewReader(p.Bytes))
	}
	return r.Manifests().PushReference(ctx, descriptor(p.Descriptor), bytes.NewReader(p.Bytes), tag)
}

func what(mediaType string) string {
	switch mediaType {
	case store.TypeRawDisk, store.TypeZstdDisk:
		return "disk"
	case store.TypeKernel:
		return "kernel"
	case store.TypeTree:
		return "tree"
	}
	return "description"
}

// stalling is a body that ends its request when nothing moves for a while.
type stalling struct {
	ctx        context.Context
	body       io.ReadCloser
	after      time.Duration
	timer      *time.Timer
	cancel     context.CancelCauseFunc
	what       string
	got, total int64
	progress   func(string, int64, int64)
	sending    bool
}

func newStalling(ctx context.Context, body io.ReadCloser, after time.Duration, cancel context.CancelCauseFunc) *stalling {
	return &stalling{ctx: ctx, body: body, after: after, cancel: cancel, timer: time.AfterFunc(after, func() { cancel(ErrStalled) })}
}

func (s *stalling) Read(p []byte) (int, error) {
	s.timer.Reset(s.after)
	n, err := s.body.Read(p)
	if !s.sending || err != nil {
		// What passes between two reads is the registry's time only when it is sent to.
		s.timer.Stop()
	}
	s.got += int64(n)
	if s.progress != nil {
		s.progress(s.what, s.got, s.total)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(s.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (s *stalling) Close() error {
	s.timer.Stop()
	err := s.body.Close()
	if !s.sending { // a body that was sent is closed before the answer is there
		s.cancel(nil)
	}
	return err
}

// explain turns the registry's words into a line for people.
func (r *repo) explain(ctx context.Context, ref spec.Reference, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var resp *errcode.ErrorResponse
	var dns *net.DNSError
	switch {
	case errors.Is(err, errdef.ErrNotFound):
		return fmt.Errorf("%s: %w", ref, ErrNotFound)
	case errors.As(err, &resp) && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden),
		errors.Is(err, auth.ErrBasicCredentialNotFound):
		advice := "log in with docker, or give --username and --password-stdin"
		if r.cred.Helper != "" {
			advice = fmt.Sprintf("docker keeps them in docker-credential-%s, which smolvmm does not run: give --username and --password-stdin", r.cred.Helper)
		}
		return fmt.Errorf("%s: %w; %s", ref, ErrDenied, advice)
	case errors.As(err, &resp):
		return fmt.Errorf("%s: the registry answers %d %s", ref, resp.StatusCode, clip(resp.Errors.Error()))
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Errorf("%s: there is no host of the name %s", ref, dns.Name)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%s: the registry speaks no TLS: --plain-http does without", ref)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s: %w", ref, ErrStalled)
	}
	return fmt.Errorf("%s: %w", ref, err)
}

func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}
