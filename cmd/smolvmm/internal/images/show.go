package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/sign"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/store"
)

// pruneGrace is how old must be what prune removes: a build that was stopped is
// taken up again within that time.
const pruneGrace = time.Hour

func pruneError(err error) error {
	if errors.Is(err, blob.ErrInUse) {
		return errors.New("prune: something is being built, pulled or loaded: try again when it is done")
	}
	return err
}

// view is an image as --format json has it.
type view struct {
	ID      string   `json:"id"`
	Names   []string `json:"names"`
	Digests []string `json:"digests"`
	Added   string   `json:"added"` // RFC 3339
	// Disk and Room are the disk's size and what the image takes here, bytes.
	Disk       int64       `json:"disk_bytes"`
	Room       int64       `json:"room_bytes"`
	Signatures []signature `json:"signatures"`
	HasTree    bool        `json:"has_tree"`
	DiskPath   string      `json:"disk_path,omitempty"`
	KernelPath string      `json:"kernel_path,omitempty"`
	Error      string      `json:"error,omitempty"`
	Image      *spec.Image `json:"image,omitempty"`
}

type signature struct {
	Key     string `json:"key"`
	Comment string `json:"comment"`
}

func viewOf(s *store.Store, e store.Entry) view {
	v := view{
		ID: e.ID, Names: append([]string{}, e.Names...), Digests: append([]string{}, e.Digests...),
		Added: e.Added.Format(time.RFC3339), Signatures: []signature{},
	}
	if e.Err != nil {
		v.Error = e.Err.Error()
		return v
	}
	v.Disk, v.Room, v.HasTree, v.DiskPath, v.Image = e.Disk.Size(), s.Room(e), e.Tree != nil, e.Disk.Path(), &e.Image
	if e.Kernel != nil {
		v.KernelPath = e.Kernel.Path()
	}
	for _, file := range e.Signatures {
		if sig, err := sign.ParseSignature(file); err == nil {
			v.Signatures = append(v.Signatures, signature{sig.ID.String(), sig.Trusted})
		}
	}
	return v
}

func imagesVerb() Verb {
	return Verb{Name: "images", Summary: "list images", Help: imagesHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("images")
		format := f.String("format", "table", "`HOW`: table or json")
		quiet := f.BoolP("quiet", "q", false, "only the IDs")
		return f, func(ctx context.Context, e Env, words []string) error {
			if *format != "table" && *format != "json" {
				return usagef("-format %q: must be table or json", *format)
			}
			if len(words) > 1 {
				return usagef("images: one name at a time")
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			all, err := s.List()
			if err != nil {
				return err
			}
			if len(words) == 1 {
				all = named(all, words[0])
			}
			switch {
			case *quiet:
				for _, img := range all {
					fmt.Fprintln(e.Out, store.ShortID(img.ID))
				}
			case *format == "json":
				list := []view{}
				for _, img := range all {
					list = append(list, viewOf(s, img))
				}
				return printJSON(e.Out, list)
			case len(all) == 0 && len(words) == 0:
				fmt.Fprintln(e.Err, "smolvmm: no images yet: smolvmm build makes one, smolvmm pull fetches one")
			default:
				table(e.Out, s, all)
			}
			return nil
		}
	}}
}

// named are the images with a name that begins like it: web lists web:1.0 too.
func named(all []store.Entry, name string) []store.Entry {
	var out []store.Entry
	for _, img := range all {
		for _, n := range img.Names {
			if n == name || strings.HasPrefix(n, name+":") || strings.HasPrefix(n, name+"/") {
				out = append(out, img)
				break
			}
		}
	}
	return out
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table lists images, a line for each name.
func table(w io.Writer, s *store.Store, all []store.Entry) {
	rows := [][]string{{"NAME", "ID", "CREATED", "DISK", "STORED", "SIGNED BY"}}
	for _, img := range all {
		names := img.Names
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		created, disk, room, keys := "-", "-", "-", "-"
		if img.Err != nil {
			keys = "damaged: " + printable(img.Err.Error())
		} else {
			v := viewOf(s, img)
			if t, err := time.Parse(time.RFC3339, img.Image.Created); err == nil {
				created = t.UTC().Format("2006-01-02 15:04")
			}
			disk, room = bytesText(v.Disk), bytesText(v.Room)
			var ids []string
			for _, sig := range v.Signatures {
				ids = append(ids, sig.Key)
			}
			if len(ids) > 0 {
				keys = strings.Join(ids, ",")
			}
		}
		for _, n := range names {
			rows = append(rows, []string{n, store.ShortID(img.ID), created, disk, room, keys})
		}
	}
	printTable(w, rows)
}

func printTable(w io.Writer, rows [][]string) {
	var widths []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, r := range rows {
		var line strings.Builder
		for i, c := range r {
			line.WriteString(c)
			if i < len(r)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		fmt.Fprintln(w, line.String())
	}
}

// printable takes out what would steer a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// bytesText is a size for people, binary units.
func bytesText(n int64) string {
	const units = "KMGT"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/(1<<10), 0
	for v >= 999.95 && i < len(units)-1 {
		v, i = v/(1<<10), i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

func imageVerb() Verb {
	return Verb{Name: "image", Summary: "inspect and check images", Help: imageHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("image")
		format := f.String("format", "json", "`HOW`: json, or document for the description as it is signed")
		return f, func(ctx context.Context, e Env, words []string) error {
			if len(words) < 2 || words[0] != "inspect" && words[0] != "check" {
				return usagef("image: inspect or check, and an image: smolvmm image inspect web")
			}
			if *format != "json" && *format != "document" {
				return usagef("-format %q: must be json or document", *format)
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			list := []view{}
			for _, w := range words[1:] {
				img, err := resolve(s, w)
				switch {
				case err != nil:
					return err
				case words[0] == "check":
					if err := check(ctx, s, img); err != nil {
						return err
					}
					fmt.Fprintf(e.Out, "%s is whole\n", img.Name())
				case *format == "document":
					if _, err := e.Out.Write(img.Document); err != nil {
						return err
					}
				default:
					list = append(list, viewOf(s, img))
				}
			}
			if words[0] == "inspect" && *format == "json" {
				return printJSON(e.Out, list)
			}
			return nil
		}
	}}
}

// check reads all that an image has and compares it with the digests.
func check(ctx context.Context, s *store.Store, img store.Entry) error {
	digests := []string{img.Disk.Digest()}
	if img.Kernel != nil {
		digests = append(digests, img.Kernel.Digest())
	}
	if img.Tree != nil {
		digests = append(digests, img.Tree.Digest())
	}
	for _, d := range digests {
		if err := s.Blobs().Verify(ctx, d); err != nil {
			return fmt.Errorf("image %s: %w", img.Name(), err)
		}
	}
	return nil
}
