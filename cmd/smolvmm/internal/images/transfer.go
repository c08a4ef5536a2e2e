package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/builder/oci"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/store"
)

const (
	// DefaultRegistry is where names without a registry are pulled from, and
	// RegistryVariable names another: both are smolBSD's.
	DefaultRegistry  = "ghcr.io/netbsdfr/smolbsd"
	RegistryVariable = "SMOLREPO"
	// maxPassword bounds what --password-stdin reads, bytes: tokens have some thousand.
	maxPassword = 64 << 10
)

// login are the flags that pull and push share.
type login struct {
	user     string
	password bool
	plain    bool
}

func (l *login) flags(f *pflag.FlagSet) {
	f.StringVarP(&l.user, "username", "u", "", "`NAME` to log in with")
	f.BoolVar(&l.password, "password-stdin", false, "read the password from standard input")
	f.BoolVar(&l.plain, "plain-http", false, "speak HTTP without TLS")
}

// options reads the credentials: from the flags, else from docker's file.
func (l *login) options(e Env) (oci.Options, error) {
	o := oci.Options{
		PlainHTTP: l.plain, Proxy: http.ProxyFromEnvironment, UserAgent: "smolvmm", Progress: e.Progress,
		Warn: func(err error) { fmt.Fprintln(e.Err, "smolvmm: "+printable(err.Error())) },
	}
	if (l.user != "") != l.password {
		return o, usagef("-username and -password-stdin belong together")
	}
	if l.password {
		pass, err := readPassword(e.In)
		if err != nil {
			return o, err
		}
		o.Credentials = func(string) oci.Credential { return oci.Credential{Username: l.user, Password: string(pass)} }
		return o, nil
	}
	dir, _ := e.Variable("DOCKER_CONFIG")
	if dir == "" {
		home, _ := e.Variable("HOME")
		if home == "" {
			return o, nil
		}
		dir = filepath.Join(home, ".docker")
	}
	var err error
	if o.Credentials, err = oci.DockerCredentials(filepath.Join(dir, "config.json")); err != nil {
		return o, fmt.Errorf("docker's credentials: %w", err)
	}
	return o, nil
}

// readPassword takes standard input up to its end, without the last newline.
func readPassword(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxPassword+1))
	if err != nil {
		return nil, fmt.Errorf("-password-stdin: %w", err)
	}
	pass := strings.TrimRight(string(b), "\r\n")
	if pass == "" || len(b) > maxPassword {
		return nil, usagef("-password-stdin: want a password of 1 to %d bytes on standard input", maxPassword)
	}
	return []byte(pass), nil
}

// remoteName is where a name without a registry is looked for.
func remoteName(e Env, ref spec.Reference) (spec.Reference, error) {
	if ref.Registry != "" {
		return ref, nil
	}
	base, ok := e.Variable(RegistryVariable)
	if !ok || base == "" {
		base = DefaultRegistry
	}
	full, err := spec.ParseReference(strings.TrimSuffix(base, "/") + "/" + ref.String())
	if err != nil || full.Registry == "" {
		return full, usagef("%s=%s: want a registry and perhaps a path, like %s", RegistryVariable, printable(base), DefaultRegistry)
	}
	return full, nil
}

func pullVerb() Verb {
	return Verb{Name: "pull", Summary: "fetch an image from a registry", Help: pullHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("pull")
		var l login
		l.flags(f)
		keys := f.StringArray("verify", nil, "`KEY` that must have signed the image; repeatable")
		noTree := f.Bool("no-tree", false, "without what FROM needs")
		size := f.String("max-size", "", "`SIZE` that the disk may have (default 64G)")
		return f, func(ctx context.Context, e Env, words []string) error {
			if len(words) != 1 {
				return usagef("pull: one image: smolvmm pull ghcr.io/netbsdfr/smolbsd/rescue-amd64")
			}
			ref, err := parseRef(words[0])
			if err != nil {
				return err
			}
			from, err := remoteName(e, ref)
			if err != nil {
				return err
			}
			o := oci.PullOptions{NoTree: *noTree, Names: []spec.Reference{ref.Tagged()}}
			if ref.Tag == "" { // by digest: who names the image is who tags it
				o.Names = []spec.Reference{}
			}
			if o.MaxDisk, err = e.maxDisk(*size); err != nil {
				return err
			}
			if o.Keys, err = e.publicKeys(*keys); err != nil {
				return err
			}
			if o.Options, err = l.options(e); err != nil {
				return err
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			img, err := oci.Pull(ctx, s, from, o)
			if err != nil {
				return fmt.Errorf("pull: %w", advise(err))
			}
			fmt.Fprintln(e.Out, "pulled", ref, store.ShortID(img.ID))
			return nil
		}
	}}
}

// advise adds what to do.
func advise(err error) error {
	if errors.Is(err, store.ErrUnsigned) {
		return fmt.Errorf("%w: nothing was stored", err)
	}
	return err
}

func pushVerb() Verb {
	return Verb{Name: "push", Summary: "put an image into a registry", Help: pushHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("push")
		var l login
		l.flags(f)
		raw := f.Bool("raw", false, "the disk uncompressed, as smolBSD has it")
		noTree := f.Bool("no-tree", false, "without what FROM needs")
		return f, func(ctx context.Context, e Env, words []string) error {
			if len(words) != 1 && len(words) != 2 {
				return usagef("push: an image, and where to: smolvmm push web registry.example/team/web:1.0")
			}
			to, err := parseRef(words[len(words)-1])
			if err != nil {
				return err
			}
			if to.Registry == "" {
				return usagef("push: %s names no registry: smolvmm push %s registry.example/%s", to, words[0], to)
			}
			if to.Digest != "" {
				return usagef("push: %s: a digest is what the image has, not what it is given", to)
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			img, err := resolve(s, words[0])
			if err != nil {
				return err
			}
			o := oci.PushOptions{Raw: *raw, NoTree: *noTree}
			if o.Options, err = l.options(e); err != nil {
				return err
			}
			digest, err := oci.Push(ctx, s, img, to, o)
			if err != nil {
				return fmt.Errorf("push: %w", err)
			}
			fmt.Fprintf(e.Out, "pushed %s@%s\n", to.Repository(), digest)
			return nil
		}
	}}
}
