package access

import (
	"context"
	"errors"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// Authority knows the access tokens and decides what callers may do. Its methods
// are safe for concurrent use. None may be called within a store.Update of the
// same store: they write themselves.
type Authority struct {
	store store.Store
	now   func() time.Time
}

// New returns the authority over s. clock says when tokens expire; nil is time.Now.
func New(s store.Store, clock func() time.Time) *Authority {
	if clock == nil {
		clock = time.Now
	}
	return &Authority{store: s, now: clock}
}

// Authorize decides whether the caller that ctx carries may do v to o, and
// returns nil where it may. Otherwise the error is an *atelier.Error:
// Unauthenticated where there is no caller, NotFound for another workspace than
// the one that the caller is bound to (its existence is no business of the
// caller's), else Forbidden. Where a decision must be audited and cannot be, the
// answer is no, with the store's error.
func (a *Authority) Authorize(ctx context.Context, v Verb, o Object) error {
	p := PrincipalFrom(ctx)
	d := decide(p, v, o)
	if d.audited(v) {
		// The caller may hang up; the record of what it tried is kept all the same.
		ctx := context.WithoutCancel(ctx)
		err := a.store.Update(ctx, By(ctx), func(tx store.Tx) error {
			return tx.Audit(store.AuditEntry{
				Time: a.now(), Workspace: o.Workspace, Actor: p.Actor(), Verb: string(v),
				Kind: o.Kind, Object: o.ID, Allowed: d.allowed, Why: d.rule, Request: RequestFrom(ctx),
			})
		})
		if err != nil {
			return errors.Join(d.err(p, v, o), err)
		}
	}
	return d.err(p, v, o)
}

// decision is what one rule says.
type decision struct {
	allowed bool
	rule    string // in words, for the audit trail
	code    atelier.Code
}

// audited reports whether the decision goes into the audit trail; see the
// package comment.
func (d decision) audited(v Verb) bool {
	return !d.allowed || !v.Reads() && !frequent[v]
}

func (d decision) err(p Principal, v Verb, o Object) error {
	switch {
	case d.allowed:
		return nil
	case d.code == atelier.NotFound:
		return atelier.Errorf(atelier.NotFound, "there is no such workspace").
			WithRemedy("'atelier workspace list' shows those that you may see.")
	case d.code == atelier.Unauthenticated:
		return atelier.Errorf(atelier.Unauthenticated, "%s needs a credential, and none came", v).
			WithRemedy("Send 'Authorization: Bearer TOKEN'; 'atelier login' stores one for the command line.")
	}
	return atelier.Errorf(atelier.Forbidden, "%s may not do %s: %s", p.Actor(), v, d.rule).
		WithRemedy("Ask an administrator of the hub for a token that may.")
}

func allow(rule string) decision                    { return decision{allowed: true, rule: rule} }
func refuse(code atelier.Code, why string) decision { return decision{rule: why, code: code} }

// decide holds all the rules. What no rule allows is refused.
func decide(p Principal, v Verb, o Object) decision {
	switch p.Kind {
	case System:
		return allow("the hub may do everything")
	case User:
		return decideUser(p, v, o)
	case Device:
		return decideDevice(p, v, o)
	case Joiner:
		if v == DeviceEnrol && p.Workspace != "" && o.Workspace == p.Workspace {
			return allow("a join token lets devices into its workspace")
		}
		return refuse(atelier.Forbidden, "a join token lets devices into its own workspace and does nothing else")
	}
	return refuse(atelier.Unauthenticated, "nobody may do anything without a credential")
}

func decideUser(p Principal, v Verb, o Object) decision {
	if p.Workspace != "" && o.Workspace != p.Workspace {
		switch {
		case o.Workspace != "":
			return refuse(atelier.NotFound, "the token is bound to another workspace")
		case !shared[v]:
			return refuse(atelier.Forbidden, "the token is bound to a workspace, and this concerns the whole hub")
		}
	}
	switch {
	case ofDevice[v] || v == DeviceEnrol:
		return refuse(atelier.Forbidden, "only a device may do this, for itself")
	case p.Role == Admin:
		return allow("an admin may do everything")
	case p.Role == Viewer && v.Reads():
		return allow("a viewer may read")
	case p.Role == Viewer:
		return refuse(atelier.Forbidden, "a viewer may only read")
	case p.Role == Builder && ofBuilder[v]:
		return allow("a builder may build environments")
	case p.Role == Builder:
		return refuse(atelier.Forbidden, "a builder may only build environments")
	}
	return refuse(atelier.Forbidden, "the token has no role that is known")
}

func decideDevice(p Principal, v Verb, o Object) decision {
	switch {
	case !ofDevice[v]:
		return refuse(atelier.Forbidden, "a device may only connect, renew, report, move content and write telemetry")
	case p.ID == "" || o.ID != p.ID || p.Workspace == "" || o.Workspace != p.Workspace:
		return refuse(atelier.Forbidden, "a device may do this only for itself")
	}
	return allow("a device may do this for itself")
}
