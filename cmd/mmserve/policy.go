package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// policyFlags say what requests and answers are held to.
type policyFlags struct {
	ortLib string      // that models which a policy names run on
	abuse  *abuseAdmin // nil: nothing watches for abuse

	PolicyFile string `name:"policy-file" placeholder:"FILE" env:"MMSERVE_POLICY_FILE" help:"What texts and images may hold, by category and tenant, a YAML or JSON file: personal data, hate, violence and more are allowed, flagged, redacted or blocked; read again when it changes (default: everything passes)."`
}

// apply has the server hold to the policy, which follows its file until ctx ends.
func (f policyFlags) apply(ctx context.Context, o *server.Options, ortLib string, pixels int64,
	log *slog.Logger, reload *reloaders) error {
	if f.PolicyFile == "" {
		return nil
	}
	file, again, err := safety.Open(f.PolicyFile, log)
	if err != nil {
		return fmt.Errorf("--policy-file: %w", err)
	}
	policy := &serving.Policy{Now: file.Policy}
	if f.abuse != nil {
		f.abuse.file.Store(file)
		policy.Watch = f.abuse.watch
	}
	if p := file.Policy(); p.TextInImages != "" || len(p.Classifiers) > 0 {
		if err := serving.StartRuntime(ortLib); err != nil {
			return err
		}
		in, err := safety.OpenInspector(p, safety.InspectorOptions{MaxPixels: pixels, Threads: 1})
		if err != nil {
			return fmt.Errorf("--policy-file: %s: %w", f.PolicyFile, err)
		}
		if in != nil {
			policy.Inspector, policy.Texts = in, in
		}
	}
	go again.Run(ctx)
	reload.add("policy", again.Reload)
	o.Policy = policy
	return nil
}
