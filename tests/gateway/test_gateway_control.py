"""Bedrock's control plane with boto3."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from support.process import GatewayProcess

NOVA = "amazon.nova-micro-v1:0"


@pytest.fixture(scope="module")
def control(gateway: GatewayProcess) -> Any:
    client = boto3.client(
        "bedrock", endpoint_url=gateway.url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    yield client
    client.close()


def test_foundation_models(control: Any) -> None:
    models = {model["modelId"]: model for model in control.list_foundation_models()["modelSummaries"]}
    assert models[NOVA]["providerName"] == "Amazon"
    assert models[NOVA]["modelArn"] == f"arn:aws:bedrock:us-east-1::foundation-model/{NOVA}"
    assert models["tiny"]["providerName"] == "Diptych"
    assert all(len(model["modelName"]) <= 20 for model in models.values())
    assert control.get_foundation_model(modelIdentifier=NOVA)["modelDetails"]["modelId"] == NOVA
    arn = models[NOVA]["modelArn"]
    assert control.get_foundation_model(modelIdentifier=arn)["modelDetails"]["modelArn"] == arn


@pytest.mark.parametrize(
    ("filters", "some"),
    [
        ({"byProvider": "meta"}, True),
        ({"byProvider": "cohere"}, False),
        ({"byOutputModality": "TEXT"}, True),
        ({"byOutputModality": "IMAGE"}, False),
        ({"byInferenceType": "PROVISIONED"}, False),
        ({"byCustomizationType": "FINE_TUNING"}, False),
    ],
)
def test_filters(control: Any, filters: dict[str, str], some: bool) -> None:
    assert bool(control.list_foundation_models(**filters)["modelSummaries"]) == some


def test_availability(control: Any) -> None:
    assert control.get_foundation_model_availability(modelId=NOVA)["authorizationStatus"] == "AUTHORIZED"


def test_inference_profiles(control: Any) -> None:
    profiles = control.list_inference_profiles()["inferenceProfileSummaries"]
    by_id = {profile["inferenceProfileId"]: profile for profile in profiles}
    nova = by_id[f"us.{NOVA}"]
    assert nova["models"] == [{"modelArn": f"arn:aws:bedrock:us-east-1::foundation-model/{NOVA}"}]
    for asked in (f"us.{NOVA}", nova["inferenceProfileArn"]):
        assert control.get_inference_profile(inferenceProfileIdentifier=asked)["inferenceProfileId"] == f"us.{NOVA}"
    pages = control.get_paginator("list_inference_profiles").paginate(PaginationConfig={"PageSize": 2})
    assert [p["inferenceProfileId"] for page in pages for p in page["inferenceProfileSummaries"]] == list(by_id)
    assert control.list_inference_profiles(typeEquals="APPLICATION")["inferenceProfileSummaries"] == []


def test_nothing_else_is_configured(control: Any) -> None:
    assert control.list_custom_models()["modelSummaries"] == []
    assert control.list_imported_models()["modelSummaries"] == []
    assert control.list_prompt_routers()["promptRouterSummaries"] == []
    assert control.list_provisioned_model_throughputs()["provisionedModelSummaries"] == []
    assert control.list_marketplace_model_endpoints()["marketplaceModelEndpoints"] == []
    assert control.list_custom_model_deployments()["modelDeploymentSummaries"] == []
    assert "loggingConfig" not in control.get_model_invocation_logging_configuration()


def test_an_unknown_model_is_not_found(control: Any) -> None:
    for asked in (
        lambda: control.get_foundation_model(modelIdentifier="nope"),
        lambda: control.get_inference_profile(inferenceProfileIdentifier="us.nope"),
        lambda: control.get_foundation_model_availability(modelId="nope"),
    ):
        with pytest.raises(ClientError) as caught:
            asked()
        assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
