package server

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	inferencepb "github.com/mmserve/mmserve/proto/inference"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// mmservePackage has the services that answer from models and are UNAVAILABLE while there are none.
var mmservePackage = string(pb.File_mmserve_v1_mmserve_proto.Package())

// contract are the files of mmservePackage.
var contract = []protoreflect.FileDescriptor{
	pb.File_mmserve_v1_mmserve_proto, pb.File_mmserve_v1_conversation_proto, pb.File_mmserve_v1_subject_proto,
}

// serviceNames are the services that health is told of.
var serviceNames = []string{
	pb.InferenceService_ServiceDesc.ServiceName, pb.ModelService_ServiceDesc.ServiceName,
	pb.MMServe_ServiceDesc.ServiceName, pb.ConversationService_ServiceDesc.ServiceName,
	pb.SubjectService_ServiceDesc.ServiceName,
	inferencepb.GRPCInferenceService_ServiceDesc.ServiceName,
}

// register has all services answered, the old one by the methods of the new.
func (s *Server) register(r grpc.ServiceRegistrar) {
	pb.RegisterInferenceServiceServer(r, s)
	pb.RegisterModelServiceServer(r, s)
	pb.RegisterConversationServiceServer(r, s)
	pb.RegisterSubjectServiceServer(r, s)
	//lint:ignore SA1019 callers have the old name
	pb.RegisterMMServeServer(r, s)
	inferencepb.RegisterGRPCInferenceServiceServer(r, openInference{server: s})
}

// requests are the full names of the methods whose messages may be large, and whose calls a shutdown waits for: those
// that carry the bytes of files.
var requests = func() map[string]bool {
	list := map[string]bool{}
	for _, file := range contract {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				list["/"+string(s.FullName())+"/"+string(m.Name())] = carriesBytes(m.Input(), nil)
			}
		}
	}
	return list
}()

// carriesBytes says whether messages of d have room for files. above are the messages that d stands in.
func carriesBytes(d protoreflect.MessageDescriptor, above []protoreflect.FullName) bool {
	for _, name := range above {
		if name == d.FullName() {
			return false
		}
	}
	above = append(above[:len(above):len(above)], d.FullName())
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if f.Kind() == protoreflect.BytesKind || f.Message() != nil && carriesBytes(f.Message(), above) {
			return true
		}
	}
	return false
}

// placeless are the methods among them that take no place in an engine.
var placeless = map[string]bool{
	pb.InferenceService_CountTokens_FullMethodName: true, pb.InferenceService_UploadMedia_FullMethodName: true,
	pb.ConversationService_AppendMessages_FullMethodName: true,
	pb.SubjectService_ImportSubject_FullMethodName:       true, pb.SubjectService_CorrectSubject_FullMethodName: true,
}

// refusedMethods are answered before their messages are received.
var refusedMethods = map[string]error{
	inferencepb.GRPCInferenceService_ModelInfer_FullMethodName: status.Error(codes.Unimplemented,
		"mmserve answers prompts, not tensors: call Generate or GenerateStream of "+
			pb.InferenceService_ServiceDesc.ServiceName),
}
