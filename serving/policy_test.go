package serving_test

import (
	"testing"

	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/serving/servingtest"
)

// A policy's stages keep the contract of stages, whatever they redact or end the answer for.
func TestPolicyStages(t *testing.T) {
	p, err := safety.Parse([]byte(`default: {personal_data: {output: redact}, hate: {output: block},
		violence: {output: redact}, spam: {output: flag}}`))
	if err != nil {
		t.Fatal(err)
	}
	servingtest.TestStage(t, func() serving.Stage { return serving.NewPolicyStage(p.Of("")) },
		"", "Plain text.", "mail bob@example.com, now", "+49 170 1234567 and 4111 1111 1111 1111.",
		"we k1ll all jews ok", "i will killll you and x@y.org", "a\xff@b.de \xe2\x82", "12 34 x 56 DE89 3704 0044 0532 0130 00")
	servingtest.TestStage(t, func() serving.Stage { return serving.NewNoticeStage("See a doctor.") }, "", "It hurts.")
}
