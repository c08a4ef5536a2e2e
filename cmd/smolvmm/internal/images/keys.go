package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/store"
)

// defaultKey is the name of a key where none is given.
const defaultKey = "default"

// PublicKey finds a public key in minisign's format: a file with one, the key
// itself, or the name of one in the folder keys.
func PublicKey(keys, arg string) (sign.PublicKey, error) {
	if k, err := sign.ParsePublicKey([]byte(arg)); err == nil {
		return k, nil // base64 has slashes too
	}
	if strings.ContainsRune(arg, '/') || strings.HasSuffix(arg, ".pub") {
		return readPublic(arg)
	}
	if keyName(arg) == nil {
		k, err := readPublic(filepath.Join(keys, arg+".pub"))
		if !errors.Is(err, fs.ErrNotExist) {
			return k, err
		}
	}
	if _, err := os.Stat(arg); err == nil {
		return readPublic(arg)
	}
	return sign.PublicKey{}, usagef("the key %q is neither a file, nor a public key itself, nor one of smolvmm key list", printable(clip(arg)))
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

func readPublic(name string) (sign.PublicKey, error) {
	b, err := readSmall(name)
	if err != nil {
		return sign.PublicKey{}, err
	}
	k, err := sign.ParsePublicKey(b)
	if err != nil {
		return k, usagef("%s: %w", name, err)
	}
	return k, nil
}

func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, &UsageError{err}
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, sign.MaxFile+1))
}

func (e Env) publicKeys(args []string) ([]sign.PublicKey, error) {
	var keys []sign.PublicKey
	for _, a := range args {
		k, err := PublicKey(e.Keys, a)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// keyName tells whether a key can have a name: it becomes a file's.
func keyName(s string) error {
	if s == "" || len(s) > 64 || s[0] == '.' || s[0] == '-' ||
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != "" ||
		strings.ContainsFunc(s, func(r rune) bool { return r > '~' || r == '/' || r <= ' ' }) {
		return usagef("key: the name %q: want up to 64 letters, digits, dots, hyphens and underscores", printable(clip(s)))
	}
	return nil
}

func keyVerb() Verb {
	return Verb{Name: "key", Summary: "make and list keys for signatures", Help: keyHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("key")
		password := f.Bool("password-stdin", false, "encrypt the key with the password on standard input")
		return f, func(ctx context.Context, e Env, words []string) error {
			what, name := "", defaultKey
			if len(words) > 0 {
				what = words[0]
			}
			if len(words) == 2 {
				name = words[1]
			}
			switch {
			case len(words) > 2 || what != "generate" && what != "list" && what != "show" || what == "list" && len(words) > 1:
				return usagef("key: generate, list or show: smolvmm key generate")
			case what == "list":
				return e.listKeys()
			}
			if err := keyName(name); err != nil {
				return err
			}
			if what == "show" {
				k, err := readPublic(filepath.Join(e.Keys, name+".pub"))
				if err != nil {
					return err
				}
				fmt.Fprintln(e.Out, k)
				return nil
			}
			var pass []byte
			if *password {
				var err error
				if pass, err = readPassword(e.In); err != nil {
					return err
				}
			}
			return e.generate(name, pass)
		}
	}}
}

func (e Env) generate(name string, pass []byte) error {
	if err := os.MkdirAll(e.Keys, 0o700); err != nil {
		return err
	}
	key, err := sign.Generate()
	if err != nil {
		return err
	}
	text, err := key.File(pass)
	if err != nil {
		return err
	}
	secret, public := filepath.Join(e.Keys, name+".key"), filepath.Join(e.Keys, name+".pub")
	if err := writeNew(secret, text, 0o600); err != nil {
		return err
	}
	if err := writeNew(public, key.Public().File(), 0o644); err != nil {
		return errors.Join(err, os.Remove(secret))
	}
	fmt.Fprintf(e.Out, "%s\n%s\n", public, key.Public())
	return nil
}

// writeNew makes a file that was not there: a key is never overwritten.
func writeNew(name string, b []byte, perm os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if errors.Is(err, fs.ErrExist) {
		return usagef("key: %s is there already: give another name, or move it away", name)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

func (e Env) listKeys() error {
	names, err := e.keyNames()
	if err != nil {
		return err
	}
	if len(names) == 0 {
		fmt.Fprintln(e.Err, "smolvmm: no keys yet: smolvmm key generate makes one")
		return nil
	}
	rows := [][]string{{"NAME", "ID", "SECRET", "PUBLIC KEY"}}
	for _, n := range names {
		k, err := readPublic(filepath.Join(e.Keys, n+".pub"))
		if err != nil {
			return err
		}
		secret := "yes"
		if _, err := os.Stat(filepath.Join(e.Keys, n+".key")); err != nil {
			secret = "no"
		}
		rows = append(rows, []string{n, k.ID.String(), secret, k.String()})
	}
	printTable(e.Out, rows)
	return nil
}

func (e Env) keyNames() ([]string, error) {
	files, err := os.ReadDir(e.Keys)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, f := range files {
		if n, ok := strings.CutSuffix(f.Name(), ".pub"); ok && keyName(n) == nil {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names, nil
}

func signVerb() Verb {
	return Verb{Name: "sign", Summary: "sign an image", Help: signHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("sign")
		name := f.StringP("key", "k", defaultKey, "`NAME` or file of the secret key")
		comment := f.StringP("comment", "c", "", "`TEXT` that is signed too, instead of time and name")
		password := f.Bool("password-stdin", false, "read the key's password from standard input")
		legacy := f.Bool("legacy", false, "the form of minisign before 0.10")
		return f, func(ctx context.Context, e Env, words []string) error {
			if len(words) != 1 {
				return usagef("sign: one image: smolvmm sign web")
			}
			key, err := e.secretKey(*name, *password)
			if err != nil {
				return err
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			img, err := resolve(s, words[0])
			if err != nil {
				return err
			}
			text := *comment
			if text == "" {
				text = fmt.Sprintf("timestamp:%d\timage:%s", time.Now().Unix(), img.Name())
			}
			sig, err := key.Sign(img.Document, text, *legacy)
			if err != nil {
				return usagef("sign: %w", err)
			}
			if err := s.AddSignature(ctx, img.ID, sig.File()); err != nil {
				return err
			}
			fmt.Fprintf(e.Out, "signed %s %s with %s\n", img.Name(), store.ShortID(img.ID), sig.ID)
			return nil
		}
	}}
}

func (e Env) secretKey(name string, password bool) (sign.SecretKey, error) {
	path := name
	if !strings.ContainsRune(name, '/') && !strings.HasSuffix(name, ".key") {
		if err := keyName(name); err != nil {
			return sign.SecretKey{}, err
		}
		path = filepath.Join(e.Keys, name+".key")
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return sign.SecretKey{}, usagef("sign: there is no key %s: smolvmm key generate makes one", path)
	}
	if err != nil {
		return sign.SecretKey{}, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return sign.SecretKey{}, usagef("sign: others can read %s: chmod 600 %s", path, path)
	}
	b, err := readSmall(path)
	if err != nil {
		return sign.SecretKey{}, err
	}
	var ask func() ([]byte, error)
	if password {
		ask = func() ([]byte, error) { return readPassword(e.In) }
	}
	key, err := sign.ParseSecretKey(b, ask)
	if err != nil {
		if !password {
			return key, usagef("sign: %s: %w (-password-stdin)", path, err)
		}
		return key, usagef("sign: %s: %w", path, err)
	}
	return key, nil
}

func verifyVerb() Verb {
	return Verb{Name: "verify", Summary: "tell who has signed an image", Help: verifyHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("verify")
		args := f.StringArrayP("key", "k", nil, "`KEY` that is trusted; repeatable (default: all of smolvmm key list)")
		return f, func(ctx context.Context, e Env, words []string) error {
			if len(words) != 1 {
				return usagef("verify: one image: smolvmm verify --key KEY web")
			}
			list := *args
			if len(list) == 0 {
				names, err := e.keyNames()
				if err != nil {
					return err
				}
				if len(names) == 0 {
					return usagef("verify: no key is trusted: --key KEY, or smolvmm key generate")
				}
				for _, n := range names {
					list = append(list, filepath.Join(e.Keys, n+".pub"))
				}
			}
			keys, err := e.publicKeys(list)
			if err != nil {
				return err
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			img, err := resolve(s, words[0])
			if err != nil {
				return err
			}
			sig, err := img.Verify(keys)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.Out, "%s is signed by %s: %s\n", img.Name(), sig.ID, printable(sig.Trusted))
			return nil
		}
	}}
}
