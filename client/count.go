package client

import (
	"context"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// CountTokens says what a request costs and whether it fits, before it is sent: of images the server reads the headers
// alone, and it takes no slot. Errors are gRPC statuses; UNIMPLEMENTED comes from servers that are older.
func (c *Client) CountTokens(ctx context.Context, in *pb.GenerateRequest) (*pb.CountTokensResponse, error) {
	return c.media.CountTokens(ctx, c.uploads.replace(ctx, in).now)
}
