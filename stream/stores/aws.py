"""Signs requests to Amazon OpenSearch Service: AWS's Signature Version 4, with the credentials that botocore finds."""

import asyncio
from collections.abc import Mapping

from opensearchpy import AWSV4SignerAsyncAuth

from stream.errors import ConfigurationError, Outage
from stream.stores.nodes import Sign


def signer(region: str) -> Sign:
    """Signs with botocore's default credentials, which it refreshes before they expire.

    Raises `ConfigurationError` if there are none, or without the extra `aws`; the signer raises `Outage` if credentials
    cannot be refreshed.
    """
    try:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - an extra
        from botocore.session import Session  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            "STREAM_OPENSEARCH_AWS_REGION needs more packages: pip install 'chunk-stream[aws]'"
        ) from None
    try:
        credentials = Session().get_credentials()
    except BotoCoreError as error:
        raise ConfigurationError(f"the AWS credentials for OpenSearch cannot be read: {error}") from error
    if credentials is None:
        raise ConfigurationError(
            "there are no AWS credentials for OpenSearch: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give "
            "this machine a role"
        )
    authentication = AWSV4SignerAsyncAuth(credentials, region)

    async def sign(method: str, url: str, body: bytes | None) -> Mapping[str, str]:
        try:  # in a thread, because a refresh waits for AWS
            headers: Mapping[str, str] = await asyncio.to_thread(authentication, method, url, body)
        except (BotoCoreError, ClientError) as error:
            raise Outage(f"the AWS credentials for OpenSearch cannot be refreshed: {error}", "opensearch") from error
        return headers

    return sign
