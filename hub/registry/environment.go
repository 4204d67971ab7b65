package registry

import (
	"context"
	"slices"
	"strconv"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/packaging/environment"
)

// NewEnvironment defines a version of an environment, by one of two texts.
type NewEnvironment struct {
	Name         string
	Description  string
	Python       string   // "" for what the conda file says, or else environment.DefaultPython
	Requirements string   // the text of a requirements.txt
	Conda        string   // the text of a conda file
	Arch         []string // what to build it for
}

// architectures are those that environments are built for.
var architectures = []string{"amd64", "arm64"}

// CreateEnvironment adds a version to an environment, and the environment where the
// name is new. What was built of the same definition in the workspace before is taken;
// the rest waits for a builder.
func (r *Registry) CreateEnvironment(ctx context.Context, workspace string, n NewEnvironment) (atelier.Environment, error) {
	e, err := defined(n)
	if err != nil {
		return e, err
	}
	var made atelier.Environment
	err = r.update(ctx, func(tx store.Tx) error {
		next := e
		next.Builds = slices.Clone(e.Builds)
		for i := range next.Builds {
			if err := adopt(tx, workspace, &next.Builds[i]); err != nil {
				return err
			}
		}
		err := catalog.Environments.Each(tx, store.Query{Workspace: workspace, Parent: n.Name}, func(other atelier.Environment) error {
			next.Number = max(next.Number, other.Number+1)
			return nil
		})
		if err != nil {
			return err
		}
		next.Name = strconv.Itoa(next.Number)
		made, err = catalog.Environments.Insert(tx, workspace, n.Name, next)
		return err
	})
	return made, err
}

// defined returns the environment that n defines, with a build for each architecture.
func defined(n NewEnvironment) (e atelier.Environment, err error) {
	if err := atelier.CheckName("environment", n.Name); err != nil {
		return e, err
	}
	if err := checkTexts(n.Description, nil); err != nil {
		return e, err
	}
	python, requirements := n.Python, []string(nil)
	switch {
	case n.Requirements != "" && n.Conda != "":
		return e, atelier.Errorf(atelier.Invalid, "the environment is defined twice, by requirements and by a conda file").WithField("conda").
			WithRemedy("Give one of the two.")
	case n.Conda != "":
		asked := ""
		if asked, requirements, err = environment.ParseConda(n.Conda); err != nil {
			return e, inField(err, "conda")
		}
		if python != "" && asked != "" && python != asked {
			return e, atelier.Errorf(atelier.Invalid, "Python %.10s is asked for, and the conda file asks for %s", python, asked).WithField("python")
		}
		if python == "" {
			python = asked
		}
	default:
		if requirements, err = environment.ParseRequirements(n.Requirements); err != nil {
			return e, inField(err, "requirements")
		}
	}
	d, err := environment.New(python, requirements)
	if err != nil {
		return e, err
	}
	e = atelier.Environment{Environment: n.Name, Number: 1, Description: n.Description, Python: d.Python, Requirements: append([]string{}, d.Requirements...)}
	if e.Digest, err = d.Digest(); err != nil {
		return e, err
	}
	if len(n.Arch) == 0 || len(n.Arch) > len(architectures) {
		return e, atelier.Errorf(atelier.Invalid, "%d architectures are named; 1 to %d are taken", len(n.Arch), len(architectures)).WithField("arch")
	}
	for _, arch := range n.Arch {
		if !slices.Contains(architectures, arch) || e.Build(arch) != nil {
			return e, atelier.Errorf(atelier.Invalid, "architecture %.40q is unknown, or named twice", arch).WithField("arch").
				WithRemedy("Name some of %s.", strings.Join(architectures, ", "))
		}
		hash, err := d.Hash(arch)
		if err != nil {
			return e, err
		}
		e.Builds = append(e.Builds, atelier.Build{
			Arch: arch, Hash: hash, State: atelier.BuildPending,
			Why: atelier.Because(atelier.ReasonWaiting, "no builder has taken it yet").WithRemedy("Run 'atelier-builder' on a machine of architecture " + arch + ", if none does."),
		})
	}
	return e, nil
}

// adopt gives a build what a ready one with the same hash in the workspace came to,
// where there is one.
func adopt(tx store.Tx, workspace string, b *atelier.Build) error {
	found, err := catalog.Environments.List(tx, store.Query{Workspace: workspace, Rel: catalog.RelBuilt, To: string(b.Hash), Limit: 1})
	if err != nil || len(found) == 0 {
		return err
	}
	if ready := found[0].Build(b.Arch); ready != nil && ready.Hash == b.Hash && ready.State == atelier.BuildReady {
		*b = *ready
	}
	return nil
}

// Environment returns a version of an environment by NAME, which stands for its newest
// version, by NAME:VERSION or by its id.
func (r *Registry) Environment(ctx context.Context, workspace, ref string) (e atelier.Environment, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		e, err = findEnvironment(tx, workspace, ref)
		return err
	})
	return e, err
}

// FindEnvironment returns a version of an environment as Environment does, within a transaction.
func FindEnvironment(tx store.Tx, workspace, ref string) (atelier.Environment, error) {
	return findEnvironment(tx, workspace, ref)
}

func findEnvironment(tx store.Tx, workspace, ref string) (e atelier.Environment, err error) {
	name, number, _ := strings.Cut(ref, ":")
	switch {
	case atelier.IsID(ref):
		return catalog.Environments.Resolve(tx, workspace, "", ref)
	case number != "" && number != Latest:
		e, err = catalog.Environments.Find(tx, workspace, name, number)
	default:
		err = catalog.Environments.Each(tx, store.Query{Workspace: workspace, Parent: name}, func(other atelier.Environment) error {
			if name != "" && other.Number > e.Number {
				e = other
			}
			return nil
		})
	}
	if err == nil && e.ID == "" || atelier.CodeOf(err) == atelier.NotFound {
		return e, atelier.Errorf(atelier.NotFound, "there is no environment %.120q", ref).
			WithRemedy("See 'atelier environment list' for those that there are.")
	}
	return e, err
}

// DeleteEnvironment removes a version of an environment. InUse where a version of a
// model runs in it, or a builder works on it.
func (r *Registry) DeleteEnvironment(ctx context.Context, workspace, ref string, revision int64) error {
	return r.update(ctx, func(tx store.Tx) error {
		e, err := findEnvironment(tx, workspace, ref)
		if err != nil {
			return err
		}
		if err := checkRevision(catalog.Environments, &e, revision); err != nil {
			return err
		}
		users, err := tx.Referrers(catalog.RelIn, e.ID, 1)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			v, err := catalog.Versions.Get(tx, workspace, users[0].ID)
			if err != nil {
				return err
			}
			return atelier.Errorf(atelier.InUse, "version %d of environment %q is in use by version %d of model %q", e.Number, e.Environment, v.Number, v.Model).
				WithRemedy("Delete that version first.")
		}
		return catalog.Environments.Delete(tx, workspace, e.ID, e.Revision)
	})
}

// OpenBuildLog opens the log of an environment's build for an architecture; "" is the
// one that failed, or else the first that has a log. The caller closes it.
func (r *Registry) OpenBuildLog(ctx context.Context, workspace, ref, arch string) (*content.Blob, error) {
	e, err := r.Environment(ctx, workspace, ref)
	if err != nil {
		return nil, err
	}
	var log *atelier.File
	for _, b := range e.Builds {
		if b.Log != nil && (b.Arch == arch || arch == "" && (log == nil || b.State == atelier.BuildFailed)) {
			log = b.Log
		}
	}
	if log == nil {
		return nil, atelier.Errorf(atelier.NotFound, "there is no log of a build of %s:%d yet", e.Environment, e.Number).
			WithRemedy("A log is there when the build is over: 'atelier environment show %s:%d --wait'.", e.Environment, e.Number)
	}
	return r.open(log.Digest)
}
